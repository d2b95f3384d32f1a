"""`python -m ray_jobs` is `orpo`, for places where the script is not on the path."""

from ray_jobs.cli.main import entry

if __name__ == "__main__":
    entry("python -m ray_jobs")
