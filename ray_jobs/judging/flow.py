"""flow_judge's names, imported without its side effect on logging.

The package calls logging.basicConfig on import, which would add a handler to a program that has not
configured its own yet. This is the only module that imports it; it takes seconds, so import it late.
"""

import logging


def _without_root_handlers() -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        import flow_judge.flow_judge  # noqa: F401
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


_without_root_handlers()

from flow_judge.eval_data_types import EvalInput, EvalOutput  # noqa: E402
from flow_judge.flow_judge import FlowJudge  # noqa: E402
from flow_judge.metrics import CustomMetric, Metric, RubricItem, presets  # noqa: E402
from flow_judge.models.common import BaseFlowJudgeModel  # noqa: E402
from flow_judge.utils.prompt_formatter import (  # noqa: E402
    USER_PROMPT_NO_INPUTS_TEMPLATE,
    USER_PROMPT_TEMPLATE,
    format_rubric,
    format_user_prompt,
    format_vars,
)
from flow_judge.utils.validators import validate_eval_input  # noqa: E402

__all__ = [
    "USER_PROMPT_NO_INPUTS_TEMPLATE",
    "USER_PROMPT_TEMPLATE",
    "BaseFlowJudgeModel",
    "CustomMetric",
    "EvalInput",
    "EvalOutput",
    "FlowJudge",
    "Metric",
    "RubricItem",
    "format_rubric",
    "format_user_prompt",
    "format_vars",
    "presets",
    "validate_eval_input",
]
