"""The table of runs in a real browser."""

from __future__ import annotations

from made_runs import make_run
from playwright.sync_api import expect


def test_every_run_is_listed_with_its_state(site, page):
    page.goto(site)
    for name, state in {"image-run": "finished", "control-run": "finished", "prune-run": "finished", "gone": "lost"}.items():
        expect(page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))).to_contain_text(state)


def test_filter_leaves_the_rows_that_match(site, page):
    page.goto(site)
    page.get_by_label("Filter").fill("policyflow")
    expect(page.get_by_role("link", name="control-run")).to_be_visible()
    expect(page.get_by_role("link", name="image-run")).to_have_count(0)


def test_a_choice_survives_a_run_that_begins_above_it(site, runs, page):
    page.goto(site)
    page.get_by_label("Choose image-run").check()
    page.get_by_label("Choose second-image").check()
    expect(page.get_by_role("link", name="Compare 2 runs")).to_be_visible()
    make_run(runs, "newest-of-all", "image", steps=2)
    expect(page.get_by_role("link", name="newest-of-all")).to_be_visible()
    assert page.get_by_label("Choose image-run").is_checked() and page.get_by_label("Choose second-image").is_checked()
    assert not page.get_by_label("Choose newest-of-all").is_checked()


def test_delete_asks_first_and_refuses_a_run_at_work(site, runs, page):
    make_run(runs, "unwanted", "image", steps=2)
    make_run(runs, "at-work", "image", steps=2, state="running")
    page.goto(site)
    page.get_by_label("Choose unwanted").check()
    page.get_by_label("Choose at-work").check()
    page.get_by_role("button", name="Delete …").click()
    expect(page.get_by_text("This cannot be undone")).to_be_visible()
    assert (runs / "unwanted").exists()
    page.get_by_role("button", name="Delete for good").click()
    expect(page.get_by_text("Stop it first")).to_be_visible()
    assert (runs / "at-work").exists() and not (runs / "unwanted").exists()
