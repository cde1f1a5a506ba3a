"""Two runs side by side and the blind vote, in a real browser."""

from __future__ import annotations

import json
import re
import zipfile

import pytest
from made_runs import make_run
from playwright.sync_api import expect

from ui import votes

expect.set_options(timeout=15_000)  # a busy machine


@pytest.fixture
def ballot_box(runs):
    """The votes of one test alone."""
    box = runs / votes.FILE
    box.unlink(missing_ok=True)
    yield lambda: votes.read(runs)
    box.unlink(missing_ok=True)


def choose(page, label, option, nth=0):
    page.get_by_label(label, exact=True).nth(nth).click()
    page.get_by_role("option", name=option, exact=True).click()


def test_base_and_newest_samples_of_a_run_with_their_difference(site, page):
    page.goto(f"{site}/compare?run=image-run")
    expect(page.get_by_text("All 2 samples have the same prompt")).to_be_visible()
    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="scene", exact=True))
    expect(row).to_contain_text("0.05")  # mean of 0 and .1, then .2 more on either
    expect(row).to_contain_text("0.25")
    expect(row).to_contain_text("+0.2")
    expect(row).to_contain_text("100%2 · 0 ties · 0")
    pictures = page.locator(".duos img")
    expect(pictures).to_have_count(4)
    pictures.first.scroll_into_view_if_needed()
    page.wait_for_function("[...document.querySelectorAll('.duos img')].every(i => i.naturalWidth === 16)")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_two_runs_their_recipes_and_the_address_that_remembers_them(site, page):
    page.goto(f"{site}/compare?run=image-run&step=20&other=second-image&other_step=20")
    choose(page, "Second run", "image-run")
    expect(page.get_by_text("Both sides are the same samples")).to_be_visible()
    choose(page, "at step", "0 (base)", nth=1)
    expect(page.get_by_text("All 2 samples have the same prompt")).to_be_visible()
    page.wait_for_url("**run=image-run&step=20&other=image-run&other_step=0")
    again = page.context.new_page()
    again.goto(page.url)
    expect(again.get_by_text("image-run · step 0")).to_be_visible()


def test_what_to_do_when_nothing_matches(site, runs, page):
    other = make_run(runs, "other-seeds", "image", seed=5)
    for file in (other.folder / "samples").rglob("samples.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(line | {"seed": 900 + k}) + "\n" for k, line in enumerate(lines)))
    page.goto(f"{site}/compare?run=image-run&other=other-seeds")
    expect(page.get_by_text("2 prompts are on both sides, but no sample of them has the same number and seed")).to_be_visible()


def test_the_browser_does_not_know_the_sides_before_the_vote(site, page, ballot_box, tmp_path):
    page.goto(f"{site}/compare?run=image-run")
    page.get_by_label("Blind vote").check()
    expect(page.locator(".duel img")).to_have_count(2)
    expect(page.locator(".duos")).to_have_count(0)
    seen = re.sub(r'src="data:image/png;base64,[^"]+"', "", page.locator(".duel").evaluate("duel => duel.outerHTML"))
    assert not re.search(r"image-run|samples/|step|p00\d|s00|first|second|chosen", seen), seen
    page.keyboard.press("a")
    expect(page.get_by_text("Pair 2 of 2")).to_be_visible()
    page.keyboard.press("u")
    expect(page.get_by_text("Pair 1 of 2")).to_be_visible()
    assert ballot_box() == []
    page.get_by_role("button", name="B is better").click()
    expect(page.get_by_text("Pair 2 of 2")).to_be_visible()
    page.keyboard.press("=")
    expect(page.get_by_text("That was the last of 2 pairs")).to_be_visible()
    one, two = ballot_box()
    assert not one["tie"] and two["tie"] and {one["prompt"], two["prompt"]} == {"prompt 0", "prompt 1"}
    assert {one["sides"][which]["step"] for which in ("chosen", "rejected")} == {0, 20}
    wins = one["sides"]["chosen"]["step"] == 20
    expect(page.get_by_text(f"image-run · step 20 is preferred with {75 if wins else 25}%")).to_be_visible()
    expect(page.get_by_text("(Wilson, 2 votes)")).to_be_visible()
    with zipfile.ZipFile(exported(page, 1, tmp_path)) as archive:  # the tie prefers none
        assert sum(name.endswith(".png") for name in archive.namelist()) == 2
    expect(page.get_by_text("No objective of this version learns from pairs of pictures")).to_be_visible()


def test_votes_on_texts_leave_as_preference_data(site, page, ballot_box, tmp_path):
    page.goto(f"{site}/compare?run=text-run")
    page.get_by_label("Blind vote").check()
    for pair in (1, 2):
        expect(page.get_by_text(f"Pair {pair} of 2")).to_be_visible()
        page.keyboard.press("b")
    lines = [json.loads(line) for line in exported(page, 2, tmp_path).read_text().splitlines()]
    assert {frozenset((line["chosen"][-7:], line["rejected"][-7:])) for line in lines} == {frozenset(("step 20", " step 0"))}
    expect(page.get_by_text("policy.sampling.pairs=true")).to_be_visible()


def exported(page, count, folder):
    """The file that the browser gets."""
    page.get_by_role("button", name="Export as preference data").click()
    expect(page.get_by_text(f"{count} pair{'s' if count > 1 else ''} exported")).to_be_visible()
    with page.expect_download() as waited:
        page.locator("button, a").filter(has_text=re.compile(r"Download \d")).first.click()
    waited.value.save_as(folder / "taken")
    return folder / "taken"


def test_names_from_a_run_are_not_markup(site, runs, page):
    run = make_run(runs, "marked-up", "text")
    for file in (run.folder / "samples").rglob("samples.jsonl"):
        text = file.read_text().replace("prompt 0", "<img src=x onerror=alert(1)>").replace("answer 0", "<script>alert(2)</script>")
        file.write_text(text)
    page.goto(f"{site}/compare?run=marked-up&other=../../etc")
    expect(page.get_by_text("<img src=x onerror=alert(1)>")).to_be_visible()
    expect(page.get_by_text("<script>alert(2)</script>").first).to_be_visible()
