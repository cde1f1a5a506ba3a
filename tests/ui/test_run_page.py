"""One run from close by, in a real browser."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator

import pytest
from made_runs import make_run
from playwright.sync_api import expect


@pytest.fixture
def working(runs) -> Iterator:
    """A run that this process seems to work on."""
    run = make_run(runs, "at-work-now", "image", steps=5, state="running")
    run.status(pid=os.getpid(), pid_started=None)
    (run.folder / "logs" / "rank0.log").write_text("".join(f"line {k}\n" for k in range(150)))
    yield run
    shutil.rmtree(run.folder, ignore_errors=True)


def chart(page, metric):
    return page.locator("figure.chart").filter(has=page.locator(f'button[data-csv="{metric}"]'))


def choose(page, run):
    page.get_by_label("Run", exact=True).click()
    page.get_by_role("option", name=run, exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(run)


def test_every_branch_shows_its_curves_and_its_recipe(site, page):
    page.goto(f"{site}/run?run=image-run")
    expect(page.locator("#section-steps svg.cells")).to_have_count(2)
    page.locator("#section-recipe > summary").click()
    page.get_by_label("Filter").fill("steps")
    recipe = page.locator("#section-recipe pre [data-path]:visible")
    expect(recipe).to_have_text(["train:", "  steps: 20"])
    for kind, metric in {"control": "reward/return", "text": "reward/mean", "prune": "prune/error"}.items():
        choose(page, f"{kind}-run")
        expect(chart(page, metric).locator("svg.plot:visible polyline").first).to_be_visible()
        expect(page.locator("#section-steps")).to_have_count(0)
        expect(recipe).to_have_text([] if kind == "prune" else ["train:", "  steps: 20"])  # the filter stays
    page.get_by_label("Filter").fill("target")
    expect(recipe).to_have_text(["target:", "  params: 0.8"])


def test_runs_that_are_laid_over_tell_their_values_at_a_step(site, page):
    page.goto(f"{site}/run?run=image-run&others=second-image,no-such-run&smooth=0")
    mean = chart(page, "reward/mean")
    expect(mean.locator(".legend li")).to_have_text(["image-run 0.964", "second-image 0.974"])
    plot, tip = mean.locator("svg.plot"), page.locator(".tip")
    plot.focus()
    page.keyboard.press("End")
    expect(tip).to_have_text("step 20image-run0.96403second-image0.97403")
    page.keyboard.press("ArrowLeft")
    expect(tip).to_contain_text("step 19")
    expect(chart(page, "loss/total").locator("g.cross path")).to_have_count(1)  # the same step in other charts
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.97, box["y"] + 40)
    expect(tip).to_contain_text("step 20")
    cells = page.locator("#section-steps svg.cells").first
    cells.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    expect(tip).to_have_text("step 1, t = 10.11")


def test_the_data_behind_a_picture_can_be_saved(site, page):
    page.goto(f"{site}/run?run=image-run&others=second-image&smooth=0")
    with page.expect_download() as saved:
        chart(page, "reward/eval.scene").locator("button").click()
    assert saved.value.suggested_filename == "image-run_reward-eval.scene.csv"
    with open(saved.value.path()) as handle:
        assert handle.read() == "step,image-run,second-image\n0,0.5,0.5\n20,0.7,0.7\n"


def test_a_run_is_followed_while_it_is_written(site, page, working):
    page.goto(f"{site}/run?run=at-work-now&smooth=0")
    mean, log = chart(page, "reward/mean"), page.locator("pre.log")
    expect(mean.locator(".now")).to_have_text("0.4621")
    expect(log).to_contain_text("line 149")
    page.locator("#section-guards > summary").click()
    page.locator("#section-events > summary").click()
    assert log.evaluate("log => log.scrollTop + log.clientHeight >= log.scrollHeight - 2")
    with open(working.folder / "metrics.jsonl", "a") as handle:
        handle.write(
            '{"step": 6, "reward/me\n{"step": 6, "reward/mean": null}\n' + json.dumps({"step": 7, "reward/mean": 0.777}) + "\n"
        )
        handle.write('{"step": 8, "rew')
    with open(working.folder / "logs" / "rank0.log", "a") as handle:
        handle.write("\x1b[31m<b>last words</b>\x1b[0m\n" * 40)
    working.event("alarm", step=7, message="<i>reward rose</i>")
    expect(mean.locator(".now")).to_have_text("0.777")
    expect(page.get_by_role("link", name="1 alarm")).to_be_visible()
    expect(page.locator("#section-events")).to_contain_text("<i>reward rose</i>")
    expect(log).to_contain_text("<b>last words</b>")
    assert log.evaluate("log => log.scrollTop + log.clientHeight >= log.scrollHeight - 2")
    assert (
        page.locator("#section-guards").get_attribute("open") is None
        and page.locator("#section-events").get_attribute("open") == ""
    )
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("stops after its present step")).to_be_visible()
    assert (working.folder / "control" / "stop").exists()
    expect(page.get_by_role("button", name="Resume")).to_be_disabled()
    working.status("stopped", reason="requested")
    expect(page.get_by_role("button", name="Resume")).to_be_enabled()
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    shutil.rmtree(working.folder)
    expect(page.get_by_role("heading", name="No such run")).to_be_visible()


def test_another_run_is_chosen_without_leaving_the_page(site, page):
    page.goto(f"{site}/run?run=gone&smooth=0")
    expect(page.locator(".note")).to_contain_text("Lost: the process is gone. Resume continues from its beginning")
    expect(page.get_by_role("button", name="Resume")).to_be_enabled()
    choose(page, "broken-line")
    expect(chart(page, "reward/mean").locator(".now")).to_have_text("0.9")
    page.wait_for_function("new URLSearchParams(location.search).get('run') === 'broken-line'")
    assert "run=broken-line" in page.get_by_role("link", name="Samples").get_attribute("href")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(site, page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{site}/run?run=image-run&others=second-image")
    expect(page.locator("#section-steps svg.cells").first).to_be_visible()
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    parts = page.locator(".run-part").locator("h1, h2, figure, svg, pre, progress, button, ul, input")
    assert max(parts.evaluate_all("parts => parts.map(part => part.getBoundingClientRect().right)")) <= width  # none is cut off


def test_a_run_without_metrics_says_what_comes_next(site, runs, page):
    run = make_run(runs, "no-metrics-yet", "image", steps=1, state="running")
    (run.folder / "metrics.jsonl").unlink()
    run.status(pid=os.getpid(), pid_started=None)
    page.goto(f"{site}/run?run=no-metrics-yet")
    expect(page.get_by_role("heading", name="No metrics yet")).to_be_visible()
    expect(page.locator(".empty")).to_contain_text("first step")
    shutil.rmtree(run.folder)
