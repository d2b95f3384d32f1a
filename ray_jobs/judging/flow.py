"""flow_judge's names, without what importing the whole package costs.

`flow_judge` imports torch, transformers and openai for models that most judges never open: six seconds and
270 MB of memory in each judge's process. Its metrics and prompts need none of them. So the `__init__` of
its packages runs only when a name is asked of them (`from flow_judge.models import Hf`), and without its side
effect on logging: the package calls logging.basicConfig, which would add a handler to a program that has not
configured its own yet. This is the only module that imports flow_judge at its top.
"""

import importlib.util
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_initialising = threading.RLock()


def _initialised_late(name: str) -> None:
    """Have a package's `__init__` run when an attribute is missed that it may define (PEP 562).

    Its submodules can be imported before that. A package that was imported already stays as it is.
    """
    if name in sys.modules or (spec := importlib.util.find_spec(name)) is None:
        return
    package = importlib.util.module_from_spec(spec)

    def missing(attribute: str) -> Any:
        _initialise(package, spec)
        return getattr(package, attribute)

    vars(package)["__getattr__"] = missing
    sys.modules[name] = package
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, package)


def _initialise(package: ModuleType, spec: ModuleSpec) -> None:
    with _initialising, _root_logger_kept():
        missing = vars(package).pop("__getattr__", None)
        if missing is None:
            return
        assert spec.loader is not None
        try:
            spec.loader.exec_module(package)
        except BaseException:
            vars(package)["__getattr__"] = missing
            raise


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


_initialised_late("flow_judge")
_initialised_late("flow_judge.models")

from flow_judge.eval_data_types import EvalInput, EvalOutput  # noqa: E402
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
    "Metric",
    "RubricItem",
    "format_rubric",
    "format_user_prompt",
    "format_vars",
    "presets",
    "validate_eval_input",
]
