"""All pages over all kinds of runs, in two browsers at once, and over many runs."""

from __future__ import annotations

import shutil

import pytest
from playwright.sync_api import expect

from ui.app import build, launch

CHOSEN = {"run": "Run", "samples": "Run", "compare": "First run", "export": "Run"}  # page -> where the run is chosen
THERE = {"launch": ("link", "shapes/grpo-guard"), "prune": ("link", "prune-run"), "rewards": ("button", "Score")}


@pytest.mark.parametrize("kinds", [("image", "text"), ("control", "prune")], ids=" and ".join)
@pytest.mark.parametrize("address", CHOSEN)
def test_a_page_opens_on_runs_of_every_branch_in_two_browsers_at_once(site, page, browser, address, kinds):
    elsewhere = browser.new_context().new_page()
    both = {page: f"{kinds[0]}-run", elsewhere: f"{kinds[1]}-run"}
    for tab, run in both.items():
        tab.goto(f"{site}/{address}?run={run}")
    for tab, run in both.items():
        expect(tab.get_by_label(CHOSEN[address], exact=True)).to_have_value(run)
        expect(tab.locator(".studio-header [aria-current]")).to_have_text(address.capitalize())
        expect(tab.locator(".toast-body")).to_have_count(0)
    elsewhere.context.close()


@pytest.mark.parametrize("address", THERE)
def test_the_other_pages_open_with_what_can_be_done_there(site, page, address):
    page.goto(f"{site}/{address}")
    role, name = THERE[address]
    expect(page.get_by_role(role, name=name, exact=True).first).to_be_visible()


def test_two_hundred_runs_are_listed_and_found(runs, tmp_path, page):
    root = tmp_path / "runs"
    for k in range(200):
        shutil.copytree(runs / "image-run", root / f"run-{k:03d}")
    app = build(root)
    page.goto(launch(app))
    expect(page.locator("input[data-run]")).to_have_count(200)
    page.get_by_label("Filter").fill("run-137")
    expect(page.locator("input[data-run]")).to_have_count(1)
    expect(page.get_by_role("link", name="run-137")).to_be_visible()
    app.close()
