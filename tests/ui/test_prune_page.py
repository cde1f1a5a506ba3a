"""Prune runs: what is better than what, where it stands in the chart, and what the buttons put into the queue."""

from __future__ import annotations

import math

import pytest
from made_runs import make_run
from playwright.sync_api import expect
from prunes import make_prune

from studio.config import build as build_recipe
from studio.config import dump, parse_yaml
from studio.errors import ConfigError, RunError
from studio.run_view import RunView
from ui import prune_queue, pruned, spawn
from ui.app import build, launch
from ui.queue import Queue
from ui.scatter import Point, axis, front
from ui.site import Site


def points(*places: tuple[float, float]) -> list[Point]:
    return [Point(x, y, 0, "", "") for x, y in places]


def test_the_front_is_what_no_other_run_beats_in_size_and_quality():
    assert front(points((0.8, 0.1), (0.5, 0.3), (0.9, 0.2), (0.6, 0.3), (0.5, 0.4)), less=True) == [1, 0]
    assert front(points((0.8, 0.9), (0.5, 0.7), (0.9, 0.8), (0.6, 0.95)), less=False) == [1, 3]


def test_errors_that_differ_much_get_a_logarithmic_axis_and_targets_that_differ_little_some_room():
    errors = axis([0.007, 0.05, 0.58], spread=True)
    assert errors.log and (errors.low, errors.high) == (0.005, 1.0) and errors.ticks == (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
    assert errors.place(0.005) == 0 and errors.place(1.0) == 1
    assert errors.place(math.sqrt(0.005)) == pytest.approx(0.5)
    assert not axis([0.0, 0.58], spread=True).log and not axis([0.3, 0.58], spread=True).log
    sizes = axis([0.8, 0.8001], least=0.1)
    assert sizes.low <= 0.751 and sizes.high >= 0.849 and sizes.place((sizes.low + sizes.high) / 2) == pytest.approx(0.5)


def test_quality_is_the_error_or_a_reward_as_a_share_of_the_dense_one(tmp_path):
    make_prune(tmp_path, "one", kept=0.5, error=0.2, reward=0.6, time=0.7)
    (run,) = pruned.Summaries(Site(tmp_path)).runs()
    assert run.quality("latent error") == 0.2 and run.quality("scene kept") == pytest.approx(0.75)
    assert run.quality("clip kept") is None
    assert run.figures == {"params_kept": 0.5, "flops_kept": 0.5, "latency_ratio": 0.7, "latent_error": 0.2}
    assert run.target == "parameters 0.8" and pruned.qualities([run]) == ["latent error", "scene kept"]
    nothing = pruned.Pruned(run.row, "", {}, {"scene": (0.0, 0.3), "penalty": (-0.5, -0.25)})
    assert (
        nothing.quality("scene kept") is None
        and nothing.quality("penalty kept") is None
        and nothing.quality("latent error") is None
    )


def test_a_summary_is_read_again_when_it_changes_and_one_that_is_odd_breaks_nothing(tmp_path):
    run = make_prune(tmp_path, "one", kept=0.5, error=0.2, reward=0.6)
    summaries = pruned.Summaries(Site(tmp_path))
    assert summaries.runs()[0].figures["latent_error"] == 0.2
    run.summary({"latent_error": "<b>", "params_kept": 0.25, "before": [], "after": {"scene": 1}, "stages": "no", "groups": [3]})
    (odd,) = summaries.runs()
    assert odd.figures == {"params_kept": 0.25} and odd.rewards == {}
    assert "is not what a prune run writes" in pruned.removal(RunView.open(run.folder))
    assert "<b>" not in pruned.table([odd], None) + pruned.charts([odd], "params_kept", "latent error", None)
    (run.folder / "summary.json").write_text("{")
    assert summaries.runs()[0].figures == {}


def test_the_pair_whose_reward_changed_most_comes_first(tmp_path):
    run = make_prune(tmp_path, "one", kept=0.5, error=0.2, reward=0.6)
    assert [pair.prompt for pair in pruned.pairs(RunView.open(run.folder))] == ["prompt 1", "prompt 0"]  # +0.4 before -0.1


def test_healing_by_the_interface_is_the_healing_of_a_prune_run(tmp_path):
    """The same recipe that `studio prune` with heal.method trains, but for where the network lies and how often it is looked at."""
    from dataclasses import replace

    from pruning.heal import START, healing
    from pruning.launch import load_prune_recipe
    from studio.recipe import Recipe
    from studio.run import Run

    for method in ("distill", "reward"):
        recipe, _ = load_prune_recipe("shapes/taylor", [f"heal={{method: {method}, steps: 40, rows: 24, learning_rate: 3.0e-4}}"])
        run = Run.create(tmp_path, method, dump(recipe), total_steps=0, command=[])
        expected = healing(recipe, run)
        found = build_recipe(Recipe, prune_queue.recipe_for(dump(recipe), run.folder / START, method, 40))
        assert replace(found, watch=expected.watch) == expected


def test_healing_needs_a_pruned_network_and_a_number_of_steps(tmp_path):
    run = make_run(tmp_path, "at-work", "prune", steps=1)
    with pytest.raises(RunError, match="expected a finished prune run"):
        prune_queue.heal(RunView.open(run.folder), "distill", 10)
    view = RunView.open(make_prune(tmp_path, "one", kept=0.5, error=0.2, reward=0.6).folder)
    for steps in (0, 1.5, None, True, prune_queue.STEPS + 1):
        with pytest.raises(ConfigError, match="whole number"):
            prune_queue.heal(view, "distill", steps)
    with pytest.raises(ConfigError, match="distill, reward"):
        prune_queue.recipe_for({"model": {}, "prompts": {}}, view.folder, "../x", 1)
    with pytest.raises(ConfigError, match="not that of a prune run"):
        prune_queue.recipe_for({"model": "shapes"}, view.folder, "distill", 1)


def test_a_prune_run_is_queued_with_its_target_and_a_name_that_is_free(tmp_path):
    make_run(tmp_path, "shapes-taylor-0.7-1", "prune", steps=1)
    assert [prune_queue.prune(tmp_path, "shapes/taylor", "flops", 0.7) for _ in range(2)] == [
        "shapes-taylor-0.7-2",
        "shapes-taylor-0.7-3",
    ]
    (first, _) = Queue(tmp_path).entries()
    words = ["prune", "shapes/taylor", "target.flops=0.7", "--name", "shapes-taylor-0.7-2", "--runs", str(tmp_path)]
    assert first.words(tmp_path)[:7] == words
    for recipe, measure, share in (
        ("../x", "flops", 0.7),
        ("shapes/grpo-guard", "flops", 0.7),
        ("shapes/obs", "x", 0.7),
        ("shapes/obs", "flops", 2),
    ):
        with pytest.raises(ConfigError, match="prune: expected"):
            prune_queue.prune(tmp_path, recipe, measure, share)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """(folder of runs, address of the interface over it)"""
    root = tmp_path_factory.mktemp("prunes") / "runs"
    make_prune(root, "small", kept=0.5, error=0.4, reward=0.4, time=0.6, criterion="obs")
    make_prune(root, "large", kept=0.9, error=0.02, reward=0.76, time=0.95)
    make_prune(root, "beaten", kept=0.95, error=0.5, reward=0.2, time=1.1)
    make_run(root, "not-yet", "prune", steps=3, state="running").status(pid=1, pid_started=None)
    app = build(root)
    yield root, launch(app).rstrip("/")
    app.close()


def test_every_run_has_a_point_that_tells_and_leads_to_it(there, page):
    page.goto(f"{there[1]}/prune?run=large")
    expect(page.get_by_role("heading", name="large", exact=True)).to_be_visible()
    small = page.locator(".scatter").first.get_by_role("link", name="small:")
    small.hover()
    expect(small.locator(".says")).to_be_visible()
    expect(small.locator(".says")).to_contain_text("scene 0.8 → 0.4")
    lower, higher = small.bounding_box(), page.locator(".scatter").first.get_by_role("link", name="large:").bounding_box()
    assert lower["x"] < higher["x"] and lower["y"] < higher["y"]  # smaller, and of a larger error: further up
    page.set_viewport_size({"width": 390, "height": 500})
    small.click()
    expect(page.get_by_role("heading", name="small", exact=True)).to_be_in_viewport()
    expect(page.get_by_role("row", name="not-yet")).to_contain_text("3 of 20")


def test_quality_can_be_a_reward_that_was_kept(there, page):
    page.goto(f"{there[1]}/prune?run=large")
    page.get_by_label("Quality").click()
    page.get_by_role("option", name="scene kept").click()
    expect(page.get_by_role("img", name="scene kept against parameters kept, 3 runs")).to_be_visible()
    small, large = (
        page.locator(".scatter").first.get_by_role("link", name=f"{name}:").bounding_box() for name in ("small", "large")
    )
    assert large["y"] < small["y"]  # 0.95 of the dense reward is above 0.5


def test_a_run_shows_its_stages_its_map_and_its_pictures(there, page):
    page.goto(f"{there[1]}/prune?run=small")
    expect(page.get_by_role("row", name="cut")).to_contain_text("0.500")
    expect(page.get_by_role("row", name="1", exact=False).get_by_role("cell", name="0/8")).to_be_visible()
    picture = page.get_by_alt_text("prompt 1, pruned")
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 16
    expect(page.get_by_text("scene 0.5 → 0.9")).to_be_visible()
    assert page.get_by_role("link", name="Export").last.get_attribute("href") == "./export?run=small"


def test_healing_and_a_new_run_go_into_the_queue(there, page, monkeypatch):
    root, address = there
    monkeypatch.setattr(spawn, "command", lambda *words: ["true"])  # the queue of the page Launch starts what is put into it
    page.goto(f"{address}/prune?run=small")
    page.get_by_role("button", name="Heal: train what is left").click()
    page.get_by_role("button", name="Start healing").click()
    expect(page.get_by_text("small-heal-1 is in the queue")).to_be_visible()
    recipe = parse_yaml((root / ".launch" / "small-heal-1.yaml").read_text(), "recipe")
    assert recipe["policy"]["model"]["pruned"] == str(root / "small" / "pruned") and recipe["algorithm"]["name"] == "distill"
    page.get_by_role("button", name="Start a prune run").click()
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.get_by_text("shapes-end-to-end-0.8-1 is in the queue")).to_be_visible()
