"""What the reports make of hostile text, without drawing anything."""

import html
import json
import re

import pytest
from verdict_rows import inputs

from ray_jobs.verdict.plots import Picture
from ray_jobs.verdict.report_html import breakable, html_report, readable
from ray_jobs.verdict.report_md import markdown_report, safe
from ray_jobs.verdict.settings import VerdictSettings
from ray_jobs.verdict.verdict import VerdictInputs, make_report
from ray_jobs.verdict.words import percent, sentence, signed, span
from ray_jobs.verdict.write import report_json

HOSTILE = (
    "</pre></article><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} \x00 \ud800 \u202e"
)


def hostile() -> VerdictInputs:
    sources = [HOSTILE, "a|b", "`c`"]
    return inputs([1, 2, 3], [3, 3, 3], sources, HOSTILE, run="r<b>", trials=[trial()])


def trial():
    return {"trial_id": "<i>", "status": "done", "config": {"<u>": "<script>"}, "error": HOSTILE, "curve": []}


@pytest.fixture(scope="module")
def report():
    return make_report(hostile(), VerdictSettings(num_resamples=200, require_trust=False), 0)


def test_the_page_holds_no_markup_of_the_models(report):
    page = html_report(report, [])
    page.encode("utf-8")
    assert len(re.findall(r"<script", page)) == 1
    assert "<img" not in page
    assert "<i>" not in page.replace('<i class="', "")
    assert "{{ 7 * 7 }}" in html.unescape(page)
    assert "\x00" not in page
    assert html.escape("</pre></article><script>alert(1)</script>") in page


def test_the_policy_lets_only_the_pages_own_script_run(report):
    page = html_report(report, [])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert policy[1].startswith("default-src 'none'")
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", html.unescape(policy[1]))
    assert "http://" not in page
    assert "https://" not in page


def test_markdown_tables_hold(report):
    text = markdown_report(report, [])
    text.encode("utf-8", "replace")
    assert "<script" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert r"a\|b" in text
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in rows]
    head = rows.index(next(line for line in rows if line.startswith("| source")))
    assert set(widths[head : head + 5]) == {9}


def test_markdown_keeps_names_and_escapes_markup():
    assert safe("lora_rank *x* [a](b)\n# c") == r"lora_rank \*x\* \[a\](b) \# c"
    assert safe("_x_") == r"\_x\_"
    assert safe("a\x1b[31mb\x9b0m\x00c") == "a\ufffd\\[31mb\ufffd0m\ufffdc"


def test_json_is_ascii_and_strict(report):
    data = report_json(report)
    assert json.loads(data)["examples"][0]["base"]["answer"] == HOSTILE
    with pytest.raises(ValueError, match="JSON compliant"):
        report_json({"a": float("nan")})


def test_readable_replaces_what_html_cannot_hold():
    assert readable({"a": ["x\x00\ud800\ny", 1, None]}) == {"a": ["x\ufffd\ufffd\ny", 1, None]}


def test_what_pictures_say_is_readable(report):
    picture = Picture("difference", "t", "of a\x00\x1b[31mb", "<svg></svg>", b"")
    page = html_report(report, [picture])
    assert "of a\ufffd\ufffd[31mb" in page
    assert "\x1b" not in page


def test_words():
    assert signed(-0.126) == "\u22120.13"
    assert signed(None) == percent(None) == span(None) == "\u2013"
    assert span([-0.1, 0.25], 1, 100) == "\u221210.0 to +25.0"
    assert percent(0.1234) == "12.3 %"
    assert sentence("a b") == "A b."
    assert sentence("x -0.1 (-0.2 to 3), chosen-2") == "X \u22120.1 (\u22120.2 to 3), chosen-2."


def test_long_names_break_after_underscores():
    assert breakable("A_<b>_C") == "A_<wbr>&lt;b&gt;_<wbr>C"
