"""flow_judge's metrics and prompts, without what its models import; all of it where it is asked for."""

import subprocess
import sys

HEAVY = ("torch", "transformers", "openai")


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_judge_imports_nothing_of_other_models() -> None:
    script = (
        "import sys\n"
        "from ray_jobs.judging.engine_judge import EngineJudge\n"
        "from ray_jobs.judging.metrics import load_metric\n"
        "from ray_jobs.judging.inputs import prompt_text\n"
        "from ray_jobs.judging.flow import EvalInput\n"
        "made = EvalInput(inputs=[{'query': 'one'}], output={'response': 'two'})\n"
        "assert 'two' in prompt_text(load_metric('RESPONSE_FAITHFULNESS_5POINT'), made, 'rubric_first')\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert run(script) == "[]\n"


def test_the_whole_package_is_there_for_who_asks_and_has_the_same_classes() -> None:
    script = (
        "import logging\n"
        "import ray_jobs.judging.flow as ours\n"
        "import flow_judge.models, flow_judge.metrics\n"
        "from flow_judge import FlowJudge, Metric, BaseFlowJudgeModel, EvalInput\n"
        "assert Metric is ours.Metric is flow_judge.metrics.Metric\n"
        "assert EvalInput is ours.EvalInput\n"
        "assert BaseFlowJudgeModel is ours.BaseFlowJudgeModel is flow_judge.models.BaseFlowJudgeModel\n"
        "assert flow_judge.models.Hf is flow_judge.Hf is not None\n"
        "assert logging.getLogger().handlers == [], 'flow_judge may not configure the logging'\n"
        "assert not hasattr(flow_judge, 'Absent') and not hasattr(flow_judge.models, 'Absent')\n"
    )
    run(script)


def test_a_package_that_was_imported_before_is_left_as_it_is() -> None:
    script = (
        "import flow_judge, sys\n"
        "before = sys.modules['flow_judge'], sys.modules['flow_judge.models']\n"
        "import ray_jobs.judging.flow as ours\n"
        "assert before == (sys.modules['flow_judge'], sys.modules['flow_judge.models'])\n"
        "assert flow_judge.Metric is ours.Metric\n"
    )
    run(script)


def test_what_fails_while_it_is_imported_fails_the_same_way_again() -> None:
    script = (
        "import sys\n"
        "import ray_jobs.judging.flow\n"
        "import flow_judge\n"
        "sys.modules['flow_judge.flow_judge'] = None\n"  # as if it could not be imported
        "for _ in range(2):\n"
        "    try:\n"
        "        flow_judge.FlowJudge\n"
        "    except ImportError:\n"
        "        print('refused')\n"
        "del sys.modules['flow_judge.flow_judge']\n"
        "print(flow_judge.FlowJudge.__name__)\n"
    )
    assert run(script).split() == ["refused", "refused", "FlowJudge"]
