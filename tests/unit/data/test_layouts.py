"""Each layout of docs/data.md is read with the columns that stand beside it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_jobs.data.load import load_pairs
from ray_jobs.data.settings import Columns, Source

PAGE = Path(__file__).parents[3] / "docs" / "data.md"
ROW = re.compile(r"^\| (?P<name>[^|]+) \| [^|]+ \|(?P<columns>[^|]*)\|$", re.MULTILINE)
ASKED = {"role": "user", "content": "Why?"}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def shared(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


LAYOUTS: dict[str, dict[str, Any]] = {
    "orpo-dpo-mix-40k, UltraFeedback": {
        "prompt": "Why?", "chosen": [ASKED, said("good")], "rejected": [ASKED, said("bad")],
    },
    "TRL": {"prompt": [ASKED], "chosen": [said("good")], "rejected": [said("bad")]},
    "orca_dpo_pairs": {"system": "", "question": "Why?", "chosen": "good", "rejected": "bad"},
    "hh-rlhf": {
        "chosen": "\n\nHuman: Why?\n\nAssistant: good", "rejected": "\n\nHuman: Why?\n\nAssistant: bad",
    },
    "rm-static, full-hh-rlhf": {
        "prompt": "\n\nHuman: Why?\n\nAssistant:", "response": " good", "chosen": " good", "rejected": " bad",
    },
    "LLaMA-Factory, Alpaca": {"instruction": "Why?", "input": "", "output": ["good", "bad"]},
    "LLaMA-Factory, ShareGPT": {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": shared("good"), "rejected": shared("bad"),
    },
    "OpenAI": {
        "input": {"messages": [ASKED], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [said("good")], "non_preferred_output": [said("bad")],
    },
    "Nectar": {
        "prompt": "\n\nHuman: Why?\n\nAssistant: ", "source": ["lmsys"],
        "answers": [{"answer": "good", "rank": 1.0}, {"answer": "so"}, {"answer": "bad"}],
    },
    "SHP": {"history": "Why?", "human_ref_A": "bad", "human_ref_B": "good", "labels": 0, "score_A": 3},
    "HelpSteer3": {
        "context": [ASKED], "response1": "bad", "response2": "good", "overall_preference": 2,
    },
    "PKU-SafeRLHF": {"prompt": "Why?", "response_0": "bad", "response_1": "good", "better_response_id": 1},
    "Chatbot Arena": {
        "conversation_a": [ASKED, said("bad")], "conversation_b": [ASKED, said("good")], "winner": "model_b",
    },
}  # fmt: skip


def mappings() -> dict[str, Columns]:
    """Name of a layout -> the columns that its line gives, the last ones in code."""
    table = PAGE.read_text(encoding="utf-8").partition("| as in |")[2].partition("\n\n")[0]
    found = {}
    for row in ROW.finditer(table):
        given = re.findall(r"`(\{.*\})`", row["columns"])
        text = json.dumps(yaml.safe_load(given[-1]) if given else {})
        found[row["name"]] = Columns.model_validate_json(text)
    return {name: columns for name, columns in found.items() if not name.startswith("---")}


def test_every_layout_of_the_page_is_tried() -> None:
    assert list(mappings()) == list(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_with_the_columns_beside_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(LAYOUTS[name]) + "\n")
    (pair,) = load_pairs(Source(source=str(path), columns=mappings()[name]), 0).rows
    assert [turn.content for turn in pair.prompt] == ["Why?"]
    assert (pair.chosen, pair.rejected) == ("good", "bad")
