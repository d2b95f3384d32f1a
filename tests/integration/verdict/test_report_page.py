"""The written report, opened in a real browser."""

import random
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, DRIVER, open_browser

from ray_jobs.records import Answer, Judgement, Message, Prompt
from ray_jobs.verdict.settings import VerdictSettings
from ray_jobs.verdict.verdict import VerdictInputs, make_report
from ray_jobs.verdict.write import write_report
from tests.unit.verdict.verdict_rows import given

HOSTILE = "</pre><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
TRUST: dict[str, Any] = {
    "pairs": 40,
    "agreement": 0.9,
    "ci95": (0.77, 0.96),
    "trusted": True,
    "by_source": {"$x_{": {"pairs": 40, "agreement": 0.9, "ci95": (0.77, 0.96)}},
}
TRUST["by_metric"] = {
    "correctness": {**TRUST},
    "RESPONSE_FAITHFULNESS_5POINT": {"pairs": 40, "agreement": 0.5, "ci95": (0.35, 0.65), "trusted": False},
}


def judged_run(num_prompts: int = 40) -> VerdictInputs:
    """A run with hostile answers and sources, a needle in one answer, and a search of three trials."""
    random_scores = random.Random(0)
    sources = ["counting", "<script>document.title='taken'</script>", "$x_{"]
    prompts = [
        Prompt(f"p{i}", sources[i % 3], (Message("user", f"question {i} {HOSTILE}"),))
        for i in range(num_prompts)
    ]
    answers: dict[str, list[Answer]] = {"base": [], "candidate": []}
    judgements: dict[str, list[Judgement]] = {"base": [], "candidate": []}
    for row in prompts:
        for model, low in (("base", 1), ("candidate", 2)):
            score = random_scores.randint(low, low + 3)
            text = f"{HOSTILE} {'needle' if row.id == 'p0' else 'straw'} " * random_scores.randint(1, 4)
            answers[model].append(
                Answer(row.id, row.source, row.sha256, model, text, 9, 0, len(text) // 4, "stop", 1.0)
            )
            judgements[model].append(
                Judgement(
                    row.id, "correctness", score, None, f"worth {score} {HOSTILE}", None, "", "judge", 0.1
                )
            )
    trials = [
        {
            "trial_id": f"trial-{i}",
            "status": "done",
            "config": {
                "learning_rate": 10.0 ** -(i + 3),
                "beta": 0.1,
                "schedule": ["linear", "cosine"][i % 2],
            },
            "heldout_accuracy": 0.6 + 0.1 * i,
            "heldout_nll": 1.0,
            "seconds": 10.0,
            "steps": 20,
            "curve": [{"step": step, "heldout_accuracy": 0.5 + 0.01 * step * i} for step in (0, 10, 20)],
        }
        for i in range(3)
    ]
    checks = {model: {row.id: model == "candidate" for row in prompts} for model in answers}
    return given(
        prompts,
        answers,
        judgements,
        run="run",
        trust=TRUST,
        trials=trials,
        timings_s={"tune": 200.0, "judge": 80.5},
        checks=checks,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    inputs = judged_run()
    report = make_report(inputs, VerdictSettings(num_resamples=500, num_examples=40), seed=0)
    names = write_report(lambda name, data: (folder / name).write_bytes(data), report, inputs)
    assert sorted(names) == sorted(path.name for path in folder.iterdir())
    assert names[-1] == "report.json"
    return folder


def test_the_report_is_written_the_same_twice(folder: Path) -> None:
    inputs = judged_run()
    report = make_report(inputs, VerdictSettings(num_resamples=500, num_examples=40), seed=0)
    again: dict[str, bytes] = {}
    write_report(again.__setitem__, report, inputs)
    assert again == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_pictures_are_there_as_png_and_in_the_page(folder: Path) -> None:
    names = {path.stem for path in folder.glob("*.png")}
    assert names == {"difference", "checks", "scores", "lengths", "trust", "curves", "parallel", "time"}
    for path in folder.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("<svg") == len(names)
    assert "#0102" not in page, "a stand-in colour was not replaced"


@pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver")
class TestInABrowser:
    @pytest.fixture(scope="class")
    def browser(self):
        with open_browser() as browser:
            yield browser

    def test_hostile_text_stays_text(self, browser, folder):
        browser.open(folder / "report.html")
        assert browser.run("return document.title") == "Promote the candidate · run"
        assert browser.run("return document.images.length") == 0
        assert browser.run("return document.scripts.length") == 1
        assert browser.run("return document.querySelector('.example pre').textContent").endswith(HOSTILE)
        assert browser.console() == []

    def test_the_search_box_filters(self, browser, folder):
        shown = "return [...document.querySelectorAll('.example')].filter(e => !e.hidden).length"
        browser.open(folder / "report.html")
        assert browser.run(shown) == 40
        browser.type_into("#search", "Needle")
        assert browser.run(shown) == 1
        assert browser.run("return document.getElementById('count').textContent") == "1 of 40 shown"
        browser.type_into("#search", " nowhere")
        assert browser.run(shown) == 0

    def test_an_address_fills_the_search_box(self, browser, folder):
        browser.open(folder / "report.html", "#q=needle%20question")
        shown = "return [...document.querySelectorAll('.example')].filter(e => !e.hidden).length"
        assert browser.run("return document.getElementById('search').value") == "needle question"
        assert browser.run(shown) == 1

    def test_the_buttons_split_gains_from_losses(self, browser, folder):
        browser.open(folder / "report.html")
        browser.click("button[data-kind=loss]")
        kinds = (
            "return [...new Set([...document.querySelectorAll('.example')]"
            ".filter(e => !e.hidden).map(e => e.dataset.kind))]"
        )
        assert browser.run(kinds) == ["loss"]

    @pytest.mark.parametrize("width", [360, 1280])
    def test_it_fits_the_screen(self, browser, folder, width):
        browser.view(width, 800)
        browser.open(folder / "report.html")
        assert browser.run("return document.documentElement.scrollWidth") <= width
        smallest = (
            "const ratio = document.querySelector('figure svg').getBoundingClientRect().width / 345.6;"
            "return Math.min(...[...document.querySelectorAll('figure svg text')]"
            ".map(t => parseFloat(getComputedStyle(t).fontSize) * ratio))"
        )
        assert browser.run(smallest) >= 7.5

    def test_nothing_is_cut_off_on_a_desk(self, browser, folder):
        browser.view(1280, 800)
        browser.open(folder / "report.html")
        labels = (
            "return [...document.querySelectorAll('figure svg')].flatMap(svg => {"
            "const box = svg.getBoundingClientRect();"
            "return [...svg.querySelectorAll('text')].filter(text => {"
            "const own = text.getBoundingClientRect();"
            "return own.left < box.left - 1 || own.right > box.right + 1}).map(text => text.textContent)})"
        )
        assert browser.run(labels) == []
        tables = (
            "return [...document.querySelectorAll('.scroll')]"
            ".filter(e => e.scrollWidth > e.clientWidth).map(e => e.textContent)"
        )
        assert browser.run(tables) == []

    def test_it_follows_the_dark_look(self, browser, folder):
        colour = "return getComputedStyle(document.querySelector('figure svg text')).fill"
        looks = []
        for dark in (False, True):
            browser.view(800, 800, dark=dark)
            browser.open(folder / "report.html")
            looks.append(browser.run(colour))
        assert looks == ["rgb(27, 31, 36)", "rgb(231, 235, 240)"]
