"""Generation, with answers judged while candidates answer where the cluster has room for both."""

from dataclasses import replace
from functools import partial

from ray_jobs.stages import generate
from ray_jobs.stages.judge_stream import judged_beside

STAGE = replace(generate.STAGE, run=partial(generate.run, beside=judged_beside))
