"""The chat page in a real browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from headless import NAMES, open_page
from serving_endpoint import Endpoint, poll

from serving.files import sha256_of
from serving.registry import BaseModel

pytestmark = pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason="there is no Chromium here")

SEND = """
document.getElementById("input").value = "Name a colour.";
document.getElementById("form").requestSubmit();
"""
BESIDE_THE_TEXTS = """
(() => {
  const chat = document.getElementById("chat").cloneNode(true);
  chat.querySelectorAll(".text").forEach(text => text.remove());
  return chat.textContent.toLowerCase();
})()
"""
"""What the page itself says; a model may well write of bases."""


NOT_YET = """
const real = window.fetch, starting = '{"error": {"message": "not yet"}}';
window.starts = true;
window.fetch = (...asked) => window.starts && asked[0] === "v1/models"
  ? Promise.resolve(new Response(starting, { status: 503 })) : real(...asked);
"""


def test_a_page_that_was_opened_too_soon_finds_the_models_later(endpoint: Endpoint, tmp_path: Path) -> None:
    with open_page(f"{endpoint.url}/", tmp_path) as page:
        page.command("Page.enable", {})
        page.command("Page.addScriptToEvaluateOnNewDocument", {"source": NOT_YET})
        page.command("Page.reload", {})
        page.wait("document.getElementById('state')?.textContent === 'not yet'")
        page.run(SEND)
        assert page.run("document.querySelectorAll('.turn').length") == 0, "there is nobody to send it to"
        assert page.run("document.getElementById('input').value") == "Name a colour."
        page.run("window.starts = false")
        page.wait("document.getElementById('model').options.length >= 1")
        page.run(SEND)
        page.wait("document.getElementById('chat').innerText.includes(' tokens, ')")


def test_chatting_and_voting(endpoint: Endpoint, tmp_path: Path) -> None:
    path, sha256 = endpoint.variant(11)
    base = BaseModel(endpoint.model, sha256_of(endpoint.model))
    report = endpoint.registry.root / "report.json"
    endpoint.registry.promote(path, sha256=sha256, run="page", report=report, base=base)
    poll(lambda: endpoint.champion() == sha256, 60)
    votes = endpoint.registry.root / "votes.jsonl"
    with open_page(f"{endpoint.url}/", tmp_path) as page:
        page.command("Emulation.setDeviceMetricsOverride", {
            "width": 360, "height": 640, "deviceScaleFactor": 2, "mobile": True,
        })  # fmt: skip
        page.wait("document.getElementById('model')?.options.length >= 3")
        page.run(SEND)
        page.wait("document.getElementById('chat').innerText.includes(' tokens, ')")
        answer = page.run("document.querySelectorAll('.turn .text')[0].textContent")
        assert answer
        assert page.run("document.documentElement.scrollWidth <= 360"), "nothing is cut off on a phone"
        page.run("document.getElementById('clear').click()")  # the first answer may have filled the context
        page.run(SEND.replace("Name a colour.", "Count from one to a thousand in words."))
        page.wait("document.getElementById('send').textContent === 'Stop'")
        page.wait("[...document.querySelectorAll('.turn .text')].at(-1).textContent.length > 3")
        page.run("document.getElementById('send').click()")
        page.wait("document.getElementById('chat').innerText.includes('Stopped.')")
        page.wait("document.getElementById('send').textContent === 'Send'")
        poll(lambda: endpoint.active() == 0, 10)
        page.run("document.getElementById('clear').click(); document.getElementById('model').value = 'blind'")
        page.run(SEND)
        page.wait("document.querySelectorAll('.turn button').length === 3", 60)
        assert "neither" in page.run(BESIDE_THE_TEXTS)
        assert "base" not in page.run(BESIDE_THE_TEXTS), "blind until the vote"
        assert page.run("document.documentElement.scrollWidth <= 360"), "nor are two answers"
        page.run("document.querySelector('.turn button').click()")
        page.wait("document.getElementById('chat').innerText.includes('stored as a preference pair')")
        assert "base" in page.run(BESIDE_THE_TEXTS), "and told by it"
    (row,) = map(json.loads, votes.read_text().splitlines())
    assert {row["chosen_model"], row["rejected_model"]} == {"champion", "base"}
    assert row["chosen"][0] == {"role": "user", "content": "Name a colour."}
