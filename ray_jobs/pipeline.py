"""Every stage of a run, one after the other: `python -m ray_jobs.pipeline CONFIG`."""

import sys

from ray_jobs.command import main

if __name__ == "__main__":
    sys.exit(main())
