"""Stage promote of a run: `python -m ray_jobs.promote CONFIG`."""

import sys

from ray_jobs.command import main

if __name__ == "__main__":
    sys.exit(main("promote"))
