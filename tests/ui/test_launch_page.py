"""The page Launch in a real browser: finding a recipe, changing and checking it, starting it, the queue."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import pytest
from playwright.sync_api import Page, expect
from typer.testing import CliRunner

from studio.cli import app
from studio.errors import StudioError
from studio.process import alive
from studio.run import RunView
from ui import spawn
from ui.entry import Entry
from ui.queue import Queue

ONE_AT_A_TIME = threading.Lock()  # the runner replaces this process's standard output
expect.set_options(timeout=15_000)
SOON = 30_000  # ms, for what a process of its own answers


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """`studio schema` and `studio check` answer within this process -> what was asked."""
    asked: list[Sequence[str]] = []

    def answer(words: Sequence[str], *, timeout: float) -> tuple[int, str, str]:
        asked.append(words)
        with ONE_AT_A_TIME:
            done = CliRunner().invoke(app, list(words))
        if isinstance(done.exception, StudioError):
            return done.exception.exit_code, "", f"{type(done.exception).__name__}: {done.exception}"
        return done.exit_code, done.stdout, done.stderr

    monkeypatch.setattr(spawn, "answer", answer)
    return asked


def opened(page: Page, site: str, recipe: str) -> Page:
    page.goto(f"{site}/launch?recipe={recipe}")
    expect(page.locator(".recipe-form")).to_be_visible(timeout=SOON)
    expect(page.locator(".check .state")).to_have_text(re.compile("ready|cannot run yet"), timeout=SOON)
    return page


def field(page: Page, path: str):
    return page.locator(f'[data-path="{path}"]')


def test_recipes_are_found_by_words_and_grouped_by_branch(site, page):
    page.goto(f"{site}/launch")
    for branch in ("Image", "Control", "Text", "Prune"):
        expect(page.get_by_role("heading", name=re.compile(f"^{branch}"))).to_be_visible()
    page.get_by_label("Filter recipes").fill("GAUSSIAN  baseline")
    expect(page.locator("li[data-words]:visible a")).to_have_text(["control/multigoal-ppo"])
    page.get_by_label("Filter recipes").fill("nothing like this")
    expect(page.get_by_text("No recipe matches")).to_be_visible()
    page.get_by_label("Filter recipes").fill("")
    page.get_by_label("or the recipe of a run").select_option("control-run")
    expect(page.get_by_role("heading", name="The recipe of control-run")).to_be_visible()


@pytest.mark.parametrize("asked", ["recipe=<b>x", "from=../../etc"])
def test_an_address_without_such_a_recipe_says_so(site, page, asked):
    page.goto(f"{site}/launch?{asked}")
    expect(page.get_by_text(f"No recipe or run is named {asked.partition('=')[2]}. Choose one below.")).to_be_visible()


def test_a_change_is_marked_told_as_an_override_and_taken_back(site, page, quick):
    opened(page, site, "control/multigoal-ppo")
    expect(page.get_by_text("optimizer steps per iteration")).to_be_visible()
    field(page, "train.steps").fill("3")
    expect(page.locator("[data-command]")).to_contain_text("studio train control/multigoal-ppo train.steps=3 --runs")
    expect(page.locator("pre ins")).to_have_text("  steps: 3")
    expect(page.get_by_text("24 576")).to_be_visible()  # 3 iterations of 8192 actions: the check has seen it
    assert field(page, "train.steps").evaluate("e => e === document.activeElement")  # an answer does not take the focus
    page.get_by_label("changed only").check()
    expect(page.locator(".field[data-field]:visible")).to_have_count(1)
    page.get_by_role("button", name="Set steps back").click()
    expect(page.locator("[data-command]")).to_have_text(re.compile("multigoal-ppo --runs"))
    assert field(page, "train.steps").input_value() == "150" and page.locator("pre ins").count() == 0


def test_a_wrong_value_is_explained_beside_its_field(site, page, quick):
    opened(page, site, "control/multigoal-ppo")
    field(page, "train.learning_rate").fill("-1")
    field(page, "train.betas").fill("[0.9]")
    place = page.locator('[data-field="train.learning_rate"] .problem')
    expect(place).to_have_text(
        "recipe.train.learning_rate: expected a value greater than 0, got -1.0. Change it or remove the line (default 0.0001)."
    )
    expect(page.locator('[data-field="train.betas"] .problem')).to_contain_text("expected 2 values")
    expect(field(page, "train.learning_rate")).to_have_attribute("aria-invalid", "true")
    expect(page.locator(".check .state")).to_have_text("cannot run yet")
    page.get_by_role("button", name="Start now").click()
    expect(page.locator(".start .problem")).to_contain_text("expected a value greater than 0")
    page.get_by_role("button", name="Reset 2 changes").click()
    expect(page.locator(".check .state")).to_have_text("ready")
    expect(place).to_have_text("")


def test_another_algorithm_and_another_reward_bring_their_fields(site, page, quick):
    opened(page, site, "shapes/grpo-guard")
    field(page, "train.steps").fill("5")
    field(page, "algorithm.kl").fill("0.5")
    page.get_by_label("which algorithm").select_option("nft")
    expect(field(page, "algorithm.beta")).to_be_visible()
    assert field(page, "train.steps").input_value() == "5" and field(page, "algorithm.kl").input_value() == "0.0001"
    page.get_by_label("which algorithm").select_option("grpo_guard")
    page.get_by_label("Add to rewards").select_option("jpeg_size")
    field(page, "rewards.jpeg_size.weight").fill("0.25")
    expect(page.locator(".check")).to_contain_text("scene × 1, jpeg_size × 0.25")
    page.locator('[data-block="rewards.scene"] > summary').click()
    page.get_by_role("button", name="Remove scene").click()
    expect(page.locator('[data-block="rewards.scene"]')).to_have_count(0)
    expect(page.locator("[data-command]")).to_contain_text(
        "'rewards={}' 'rewards.jpeg_size={weight: 1.0}' rewards.jpeg_size.weight=0.25 train.steps=5"
    )
    expect(page.locator(".check")).to_contain_text("rewardsjpeg_size × 0.25")
    page.get_by_role("button", name="Edit as YAML").click()
    text = page.get_by_label("Recipe as YAML")
    assert "jpeg_size:\n    weight: 0.25\n" in text.input_value()
    text.fill("policy: [\n")
    expect(page.locator(".check .problem")).to_contain_text("recipe, line 2, column 1: expected YAML")
    page.get_by_role("button", name="Back to the form").click()
    expect(page.locator(".check")).to_contain_text("jpeg_size × 0.25")


def test_what_waits_is_reordered_and_taken_out(site, page, runs, quick):
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    queue = Queue(runs, lambda *_: sleeper.pid)
    try:
        queue.add(Entry("in-front", "train", "control/multigoal-ppo"), now=True)
        opened(page, site, "control/multigoal-ppo")
        for name in ("one", "two"):
            page.get_by_label("Name").fill(name)
            page.get_by_role("button", name="Add to queue").click()
            expect(page.get_by_text(f"{name} is in the queue.")).to_be_visible()
        waiting = page.locator("[data-entry]").filter(has_text="waiting").locator("th")
        expect(waiting).to_have_text([re.compile("^one"), re.compile("^two")])
        page.get_by_role("button", name="earlier two").click()
        expect(waiting).to_have_text([re.compile("^two"), re.compile("^one")])
        page.get_by_role("button", name="cancel two").click()
        expect(waiting).to_have_text([re.compile("^one")])
        page.get_by_label("Name").fill("one")
        page.get_by_role("button", name="Add to queue").click()
        expect(page.locator(".start .problem")).to_contain_text("'one', which is in the queue. Choose another.")
        page.get_by_role("button", name="cancel one").click()
        expect(waiting).to_have_count(0)
    finally:
        sleeper.kill()
        sleeper.wait()
        for entry in queue.entries():
            (runs / ".queue" / f"{entry.place:020d}-{entry.id}.{entry.state}.json").unlink(missing_ok=True)


def test_the_page_is_not_wider_than_a_telephone(browser, site, quick):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = opened(context.new_page(), site, "control/multigoal-ppo")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("link", name="Check and start").click()
    expect(page.get_by_role("button", name="Start now")).to_be_in_viewport()
    context.close()


def test_a_run_is_started_from_the_form_watched_stopped_and_resumed(site, page, runs, quick):
    opened(page, site, "control/multigoal-ppo")
    small = {"train.steps": 500, "train.epochs": 1, "acting.environments": 8, "acting.steps": 8, "watch.episodes": 4}
    for path, value in small.items():
        page.get_by_label("Filter fields").fill(path)
        field(page, path).fill(str(value))
    page.get_by_label("Name").fill("from-the-form")
    page.get_by_role("button", name="Start now").click()
    expect(page.locator(".told-good")).to_contain_text("from-the-form is starting", timeout=SOON)
    expect(page.locator("[data-entry]").filter(has_text="from-the-form")).to_contain_text("running", timeout=2 * SOON)
    page.goto(site)
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="from-the-form", exact=True))
    expect(row).to_contain_text(re.compile(r"running[1-9]\d* of 500"), timeout=SOON)
    page.get_by_label("Choose from-the-form").check()
    page.get_by_role("button", name="Stop").click()
    expect(row).to_contain_text("stopped", timeout=SOON)
    view = RunView.find(runs, "from-the-form")
    first = view.status["step"]
    _gone(view)
    page.get_by_role("button", name="Resume").click()
    expect(row).to_contain_text("running", timeout=2 * SOON)
    deadline = time.monotonic() + 60
    while view.status["step"] <= first and time.monotonic() < deadline:
        time.sleep(0.2)
    page.get_by_role("button", name="Stop").click()
    expect(row).to_contain_text("stopped", timeout=SOON)
    assert view.status["step"] > first and view.recipe["train"]["steps"] == 500
    assert (runs / "from-the-form" / "logs" / "launcher.log").is_file() and not list((runs / ".launch").glob("from-the-form*"))


def _gone(view: RunView) -> None:
    """Wait until the process of a run has ended: it writes its report after the last state."""
    deadline = time.monotonic() + 60
    while alive(view.status) and time.monotonic() < deadline:
        time.sleep(0.2)
