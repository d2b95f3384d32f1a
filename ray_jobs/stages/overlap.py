"""Generation, with the base judged while candidates answer where the cluster has room for both."""

from dataclasses import replace
from functools import partial

from ray_jobs.stages import generate
from ray_jobs.stages.ahead import base_judged

STAGE = replace(generate.STAGE, run=partial(generate.run, beside=base_judged))
