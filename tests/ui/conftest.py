"""A folder of made-up runs, the interface over it, and a page of a real browser."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_runs import DEAD, RECIPES, make_run

from ui.app import build, launch

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "chromium"


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run of every branch, one that was lost, one with a broken line among its metrics."""
    root = tmp_path_factory.mktemp("ui") / "runs"
    for kind in RECIPES:
        make_run(root, f"{kind}-run", kind)
    make_run(root, "second-image", "image", seed=1)
    make_run(root, "gone", "image", steps=5, state="running").status(**DEAD)
    broken = make_run(root, "broken-line", "image")
    with open(broken.folder / "metrics.jsonl", "a") as handle:
        handle.write('{"t": 1, "step": 21, "reward/me\n' + json.dumps({"t": time.time(), "step": 22, "reward/mean": 0.9}) + "\n")
    return root


@pytest.fixture(scope="session")
def site(runs: Path) -> Iterator[str]:
    """The address of the interface over `runs`."""
    app = build(runs)
    yield launch(app).rstrip("/")
    app.close()


@pytest.fixture(scope="session")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chrome
        chrome.close()


@pytest.fixture
def page(browser) -> Iterator:
    """A page that fails the test on an error in the browser's console or a request that leaves this machine."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, wrong = context.new_page(), []
    page.set_default_timeout(15_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" and "favicon" not in said.text else None)
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(("http://127.0.0.1", "data:", "blob:")) else None)
    yield page
    context.close()
    assert not wrong
