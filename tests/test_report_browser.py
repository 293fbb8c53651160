"""The report in a real browser, Debian's Chromium without a window: it loads, filters, steps, and runs no text."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dmr_gym.report.page import write_page
from dmr_gym.report.runs import find_runs
from dmr_gym.report.worlds import read_worlds
from tests.report_runs import episode, step, two_ways, write_evaluation
from tests.test_report import HOSTILE, toy

__all__ = ["toy"]  # a fixture of a run of every recipe

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_MS = 240_000
"""Other work on the machine must not fail a test."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason='no driver of browsers: pip install "dmr-gym[dev]"'
    ),
]

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two worlds: two precisions with hostile texts, and three."""
    root = tmp_path_factory.mktemp("runs")
    records = [record for task in ("t0", "t1") for record in two_ways(task)]
    text = " ".join(HOSTILE)
    for record in records:
        said = step(1, text, text, completion=text, invalid_reason=text, step_type="think")
        record["steps"].append(said | {"latency_llm_s": 0.0})
        record["instruction"] = record["observation"] = text
    hostile = [record | {"policy": HOSTILE[0]} for record in records if record["kind"] == "router"]
    write_evaluation(root / "two", [*sorted(records, key=lambda r: r["policy"]), *hostile])
    three = [
        episode("always bf16", "high", "t", [step(2, "a", "x")]),
        episode("always w2", "low", "t", [step(0, "b", "y")], success=False, score=0.0, cap_reached=True),
        episode("always w4", "low", "t", [step(1, "a", "x")]),
    ]
    write_evaluation(root / "three", three, ("w2", "w4", "bf16"))
    runs = find_runs([root / "two", root / "three"])
    write_page(read_worlds(runs, 10**6), "made", root / "report.html")
    return root / "report.html"


@pytest.fixture(scope="module")
def whole(toy: Path) -> Path:
    """A page that has everything: KLs, trainings, an oracle, an exact frontier, and outcomes of trees."""
    write_page(read_worlds(find_runs([toy]), 10**6), "made", toy / "report.html")
    return toy / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, timeout=PATIENCE_MS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, path: Path) -> Iterator[Open]:
    """Open the page; at the end of a test nothing may have been said on the console, loaded, or run."""
    said: list[str] = []
    contexts = []

    def open_it(width: int = 1100, scheme: str = "light", path: Path = path) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if request.url != path.as_uri() else None)
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto(path.as_uri())
        page.locator(".viewer").wait_for()
        return page

    yield open_it
    pages = [page for context in contexts for page in context.pages]
    assert [page.evaluate("window.hacked === undefined") for page in pages] == [True] * len(pages)
    for context in contexts:
        context.close()
    assert said == []


def status(page: Any) -> str:
    """What the step viewer says of where it is."""
    return str(page.locator(".moves output").inner_text())


def test_the_page_loads_and_shows_every_part(open_page: Open) -> None:
    """Without a word on the console; charts are drawn, and hostile texts stand there as texts."""
    page = open_page()
    assert page.title() == "DMR-Toy-v0 · dmr-gym report"
    assert page.locator("h2").all_inner_texts() == [
        "Results",
        "Where precisions are used",
        "Step by step",
        "Not in this report",
        "How it was made",
    ]
    page.locator("#results svg[role=img]").wait_for()
    assert "always bf16: 100.0 %" in page.locator("#results svg[role=img]").get_attribute("aria-label")
    assert page.locator("#results table").first.locator("tbody tr").count() == 4
    assert page.locator("#use svg[role=img]").count() == 2
    instruction = page.locator(".viewer pre").first.inner_text()
    assert "</script><script>window.hacked = 1</script>" in instruction
    assert "⟨U+202E⟩right to left⟨U+202C⟩" in instruction
    assert page.locator("img").count() == 0


def test_filters_choose_episodes_and_steps(open_page: Open) -> None:
    """By policy, task, result, type of step, and by whether precisions differ."""
    page = open_page()
    viewer = page.locator(".viewer")
    assert status(page) == "episode 1 of 8, step 1 of 3: bf16"
    viewer.get_by_label("policy").select_option("always w2")
    assert status(page) == "episode 1 of 2, step 1 of 3: w2"
    assert viewer.locator("h3").inner_text() == "t0"
    viewer.get_by_label("task").select_option("t1")
    assert (status(page), viewer.locator("h3").inner_text()) == ("episode 1 of 1, step 1 of 3: w2", "t1")
    viewer.get_by_label("result").select_option("solved")
    assert status(page) == "no episode fits these filters"
    viewer.get_by_label("policy").select_option("all policies")
    assert status(page) == "episode 1 of 3, step 1 of 3: bf16"
    viewer.get_by_label("step type").select_option("think")
    assert status(page) == "episode 1 of 3, step 3 of 3: bf16"
    viewer.get_by_label("step type").select_option("all types")
    viewer.get_by_label("only steps where precisions differ").check()
    assert status(page) == "episode 1 of 3, step 1 of 3: bf16"
    assert page.get_by_role("button", name="next step").is_disabled()
    page.get_by_role("button", name="next episode").click()
    assert status(page) == "episode 2 of 3, step 1 of 3: bf16"


def test_keys_move_through_steps_and_episodes(open_page: Open) -> None:
    """Inside the viewer alone, and not while a choice of a filter is made."""
    page = open_page()
    page.keyboard.press("ArrowRight")
    assert status(page) == "episode 1 of 8, step 1 of 3: bf16"
    page.focus(".viewer")
    for key, expected in [
        ("ArrowRight", "episode 1 of 8, step 2 of 3: bf16"),
        ("End", "episode 1 of 8, step 3 of 3: bf16"),
        ("ArrowRight", "episode 1 of 8, step 3 of 3: bf16"),
        ("ArrowLeft", "episode 1 of 8, step 2 of 3: bf16"),
        ("Shift+ArrowRight", "episode 2 of 8, step 1 of 3: bf16"),
        ("End", "episode 2 of 8, step 3 of 3: bf16"),
        ("Home", "episode 2 of 8, step 1 of 3: bf16"),
        ("Shift+ArrowLeft", "episode 1 of 8, step 1 of 3: bf16"),
    ]:
        page.keyboard.press(key)
        assert status(page) == expected, key
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.locator(".track button").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "2"
    page.locator(".viewer").get_by_label("task").focus()
    page.keyboard.press("Home")
    assert status(page) == "episode 1 of 8, step 2 of 3: bf16"


def test_a_step_shows_both_choices_and_where_they_lead(open_page: Open) -> None:
    """The router's first step: its probability and times, and low's way, with a way to go there."""
    page = open_page()
    page.locator(".viewer").get_by_label("policy").select_option("router p≥0.5")
    facts = page.locator(".viewer dl.facts").nth(1).inner_text()
    assert "0.750" in facts
    assert "LLM 0.10 s, router 0.01 s" in " ".join(facts.split())
    chosen, other = page.locator(".choice").all()
    assert ("go right" in chosen.inner_text(), "go left" in other.inner_text()) == (True, True)
    assert "another action" in other.inner_text()
    assert "always w2, seed 0, chose it here: ✗ not solved, step limit after 3 steps" in other.inner_text()
    other.get_by_role("button", name="go there").click()
    assert status(page) == "episode 3 of 8, step 1 of 3: w2"
    page.keyboard.press("ArrowRight")
    assert "Not known: no episode here took this choice in this state" in page.locator(".choice").first.inner_text()


def test_three_precisions_have_three_cards(open_page: Open) -> None:
    """Highest first, in the second world; the same step is told from another."""
    page = open_page()
    page.get_by_role("button", name="w2, w4, bf16").click()
    texts = page.locator(".choice").all_inner_texts()
    assert [text.split()[0] for text in texts] == ["bf16", "w4", "w2"]
    assert "The same step" in texts[1]
    assert "another action" in texts[2]


def test_the_page_follows_light_and_dark(open_page: Open) -> None:
    """By the system's choice, and by the button; letters stand out from the ground in both."""

    def brightness(page: Any, what: str) -> float:
        color = page.evaluate(f"getComputedStyle(document.body).{what}")
        return sum(float(part) for part in color.removeprefix("rgb(").removesuffix(")").split(",")) / 765

    light, dark = open_page(scheme="light"), open_page(scheme="dark")
    assert brightness(light, "backgroundColor") > 0.9 > 0.2 > brightness(light, "color")
    assert brightness(dark, "backgroundColor") < 0.2 < 0.8 < brightness(dark, "color")
    light.get_by_role("button", name="colours").click(click_count=2)
    assert light.get_by_role("button", name="colours").inner_text() == "colours: dark"
    assert brightness(light, "backgroundColor") < 0.2


def test_a_phone_needs_no_sideways_scrolling(open_page: Open) -> None:
    """At 375 pixels the page and its charts are no wider than the screen; letters of charts keep their size."""
    page = open_page(width=375)
    page.locator("#use svg[role=img]").first.wait_for()
    for details in page.locator("details").all():
        details.evaluate("one => { one.open = true; }")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    sizes = "s => [s.getBoundingClientRect().width, s.viewBox.baseVal.width]"
    boxes = page.evaluate(f"[...document.querySelectorAll('svg[role=img]')].map({sizes})")
    assert len(boxes) == 3
    assert all(0 < width <= 375 and width == pytest.approx(inner, abs=1) for width, inner in boxes)


def test_a_page_that_has_everything_shows_it(open_page: Open, whole: Path) -> None:
    """Oracle, exact frontier, histograms with the threshold of the training, curves, and outcomes of trees."""
    page = open_page(path=whole)
    assert page.locator("nav a").all_inner_texts() == ["results", "precisions", "steps", "KL", "training", "made by"]
    results = page.locator("#results figure").first
    chart = results.locator("svg[role=img]")
    assert "oracle λ=0.1: " in chart.get_attribute("aria-label")
    assert "exact frontier of the routing trees" in results.locator(".legend").inner_text()
    assert chart.locator("path.reach").evaluate("path => path.getTotalLength()") > 100
    assert chart.locator("title").filter(has_text="oracle λ=").count() >= 4
    assert page.locator("#kl svg[role=img]").count() == 2
    for figure in page.locator("#kl figure").all():
        assert figure.locator("svg rect title").count() > 1
        assert figure.locator(".chart line[stroke-dasharray]").count() == 1
        assert figure.locator(".chart text.axis[text-anchor=middle]").count() >= 3
    notes = " ".join(page.locator("#kl > .note").all_inner_texts())
    assert f"τ is the threshold of {whole.parent / 'kl-st'}." in notes
    assert "No training on this data set is in this report" in notes
    titles = page.locator("#training h4").all_inner_texts()
    assert {"KL", "balanced accuracy", "return", "share", "loss"} <= set(titles)
    for details in page.locator("#training > details").all():  # curves that are shown on request
        details.evaluate("one => { one.open = true; }")
    titles = page.locator("#training h4").all_inner_texts()
    page.locator("#training .chart").last.locator("svg[role=img]").wait_for()
    drawn = page.locator("#training svg[role=img]").all()
    assert len(drawn) == len(titles) > 0
    assert min(svg.locator("path, circle").count() for svg in drawn) > 0
    # No title of an axis lies on its numbers.
    over = """svg => { const [title] = [...svg.querySelectorAll('text[transform]')].map(e => e.getBoundingClientRect());
      return Boolean(title) && [...svg.querySelectorAll('text.axis[text-anchor=end]')].some(
        e => e.getBoundingClientRect().left < title.right); }"""
    assert not any(svg.evaluate(over) for svg in page.locator("svg[role=img]").all())
    assert "NaN" not in page.content()


def test_every_key_works_where_trees_tell_of_each_choice(open_page: Open, whole: Path) -> None:
    """All that the line of keys and the documentation name, one after the other; each choice says where it leads."""
    page = open_page(path=whole)
    keys = [text.replace("⇧", "Shift") for text in page.locator(".keys kbd").all_inner_texts()]
    assert keys == ["←", "→", "Shift ←", "Shift →", "Home", "End", "d"]
    documented = (Path(__file__).parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
    assert [key for key in keys if f"`{key}`" not in documented] == []
    page.focus(".viewer")
    seen = []
    for key in ("ArrowRight", "ArrowLeft", "Shift+ArrowRight", "Shift+ArrowLeft", "End", "Home", "d"):
        before = status(page)
        page.keyboard.press(key)
        seen.append(status(page))
        assert seen[-1] != before, key
        for choice in page.locator(".choice").all():
            text = choice.inner_text()
            assert "routing tree, best from here on: " in text
            assert "routing tree, then always high: " in text
    assert seen[0] != seen[1] == seen[3] == seen[5]
    assert page.locator(".track [aria-current=step].differs").count() == 1


@pytest.mark.parametrize("width", [375, 768])
def test_a_page_that_has_everything_fits_a_narrow_screen(open_page: Open, whole: Path, width: int) -> None:
    """With all that can be opened open."""
    page = open_page(path=whole, width=width)
    for details in page.locator("details").all():
        details.evaluate("one => { one.open = true; }")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
