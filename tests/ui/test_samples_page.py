"""Samples over steps, one at large, groups with their advantages and tokens: what is computed, and the page in a real browser."""

from __future__ import annotations

import io
import json
import re

import pytest
import torch
from made_runs import keep_samples, make_run
from PIL import Image
from playwright.sync_api import expect

from studio.run_view import RunView
from ui import groups, tiles, tokens
from ui.sample_view import Asked, show
from ui.tiles import Row, Tile

expect.set_options(timeout=15_000)  # a busy machine
TOKENS = [["4", 0.5, 1.0, -0.5], ["<b>", -1.0, 0.0, -2.0], ["\n", None, 0.5, -1.0]]


def tile(step: int, prompt: str, **scores: float) -> Tile:
    return Tile(step, {"prompt": prompt, "sample_id": "s00", "seed": 1, "rewards": scores}, None)


def some_rows() -> list[Row]:
    """Two prompts at steps 0 and 10, a third at step 10 only, a fourth without scores."""
    return tiles.rows(
        [
            tile(0, "a red cube", scene=0.2),
            tile(0, "a blue cube", scene=0.9),
            tile(10, "a blue cube", scene=0.4, **{"held_out.clip": 0.7}),
            tile(10, "a red cube", scene=0.8, **{"held_out.clip": 0.1}),
            tile(10, "a green ball", scene=0.5),
            tile(0, "nothing"),
        ]
    )


def prompts(rows) -> list[str]:
    return [row.prompt for row in rows]


def test_the_same_prompt_and_seed_is_one_row_in_the_order_of_the_newest_step():
    rows = some_rows()
    assert prompts(rows) == ["a blue cube", "a red cube", "a green ball", "nothing"]
    assert [sorted(row.tiles) for row in rows] == [[0, 10], [0, 10], [10], [0]]
    blue, red, green, nothing = rows
    assert (blue.gain("scene"), red.gain("scene")) == (pytest.approx(-0.5), pytest.approx(0.6))
    assert green.gain("scene") is None and nothing.score("scene") is None
    assert tiles.names(rows) == ["scene", "held_out.clip"]


@pytest.mark.parametrize(
    ("order", "first"),
    [
        ("highest score", ["a red cube", "a green ball", "a blue cube", "nothing"]),
        ("lowest score", ["a blue cube", "a green ball", "a red cube", "nothing"]),
        ("largest gain", ["a red cube", "a blue cube", "a green ball", "nothing"]),
        ("largest loss", ["a blue cube", "a red cube", "a green ball", "nothing"]),
        ("prompt", ["a blue cube", "a green ball", "a red cube", "nothing"]),
        ("as evaluated", ["a blue cube", "a red cube", "a green ball", "nothing"]),
    ],
)
def test_rows_are_sorted_and_those_without_the_score_come_last(order, first):
    assert prompts(tiles.ordered(some_rows(), "scene", order)) == first


@pytest.mark.parametrize(
    ("words", "left", "unknown"),
    [
        ("CUBE red", ["a red cube"], []),
        ("scene<0.5", ["a blue cube"], []),
        ("scene>=0.5 a", ["a red cube", "a green ball"], []),
        ("clip>0.5", ["a blue cube"], []),  # the short name of a held-out reward
        ("change.scene<0", ["a blue cube"], []),
        ("change.scene=0.6", ["a red cube"], []),
        ("secne<0.5 red", ["a red cube"], ["secne"]),
        ("3+4=7", [], []),  # no condition: no score is called so
    ],
)
def test_words_and_conditions_leave_the_rows_that_meet_them(words, left, unknown):
    kept, odd = tiles.matching(some_rows(), words, ["scene", "held_out.clip"])
    assert (prompts(kept), odd) == (left, unknown)


def test_columns_are_the_base_and_a_few_steps_newest_first():
    steps = list(range(0, 210, 10))  # 21 of them
    assert tiles.columns(steps, tiles.SPREAD) == [0, 200, 160, 120, 90, 50, 10]
    assert tiles.columns(steps, tiles.NEWEST) == [0, 200, 190, 180, 170, 160, 150]
    assert tiles.columns(steps, tiles.EVERY) == [0, *range(200, 0, -10)]
    assert tiles.columns([0, 5], tiles.SPREAD) == [0, 5] and tiles.columns([], tiles.SPREAD) == []


def test_colors_are_shares_of_the_largest_value():
    assert [tokens.level(x, 2.0) for x in (0.0, None, 0.01, 0.4, 0.41, -1.0, 2.0, 9.0)] == [0, 0, 1, 1, 2, 3, 5, 5]
    scale = tokens.Scale.of([TOKENS, [["x", 2.0, None, None]], [["broken"], 7]])
    assert (scale.advantage, scale.entropy) == (2.0, 1.0)
    assert [tokens.classes(token, scale) for token in TOKENS] == ["p2 e5", "n3 e0", "x e3"]
    assert tokens.spelled(TOKENS, scale, 2).count("<span") == 2 and "&lt;b&gt;" in tokens.spelled(TOKENS, scale, 2)


def test_samples_of_a_group_are_sorted_and_untrained_ones_come_last():
    members = [
        Tile(1, {"sample_id": n, "advantage": a, "reward": r}, None) for n, a, r in (("a", -1, 3), ("b", None, 2), ("c", 2, None))
    ]

    def names(order):
        return [tile.record["sample_id"] for tile in groups.ordered(members, order)]

    assert names(groups.BY_ADVANTAGE) == ["c", "a", "b"] and names("lowest advantage") == ["a", "c", "b"]
    assert names(groups.BY_REWARD) == ["a", "b", "c"] and names(groups.AS_SAMPLED) == ["a", "b", "c"]


@pytest.fixture
def texts(runs):
    """A text run with one group of two samples; the prompt is markup."""
    run = make_run(runs, "spelled", "text") if not (runs / "spelled").exists() else None
    if run is not None:
        told = {"group": 0, "prompt_id": "p", "prompt": "<u>2+2=", "rewards": {"task": 1.0}}
        members = [
            told | {"sample_id": "s00", "advantage": 0.75, "reward": 1.0, "tokens": TOKENS, "length": 3},
            told | {"sample_id": "s01", "advantage": -1.5, "reward": 0.0, "tokens": [["5", -1.5, 0.2, -0.1]], "length": 9},
        ]
        run.save_groups(20, ["4<b>\n", "5"], members)
    return "spelled"


def opened(page, site, query: str):
    page.goto(f"{site}/samples?{query}")
    page.locator(".wall .tiles, .wall .empty, .wall .members").first.wait_for()


def test_a_tile_opens_with_a_slider_that_the_keyboard_moves(site, page):
    opened(page, site, "run=image-run")
    expect(page.get_by_role("row").filter(has_text="prompt 1").locator(".score").nth(1)).to_have_text("0.3 +0.2")
    page.get_by_label("prompt 0, step 0", exact=False).first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    panel = page.get_by_label("Sample", exact=True)
    expect(panel.get_by_role("heading")).to_have_text("prompt 0")
    expect(panel.get_by_role("row", name="scene 0 0.2 +0.2")).to_be_visible()
    expect(panel.get_by_role("row", name="luminance guard")).to_be_visible()
    handle = panel.get_by_role("slider")
    handle.focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert panel.locator(".slider").evaluate("element => element.style.getPropertyValue('--cut')") == "40%"
    assert panel.locator(".slider img").first.evaluate("image => image.complete && image.naturalWidth") == 16
    assert "step=20" in page.url and page.locator(".tile[aria-pressed]").count() == 1
    page.keyboard.press("Escape")
    expect(panel).to_have_count(0)
    expect(page.locator(".tile[aria-pressed]")).to_have_count(0)


def test_a_new_step_appears_and_the_open_sample_stays(site, runs, page):
    run = make_run(runs, "growing", "image", steps=10, state="running")
    opened(page, site, "run=growing")
    page.locator(".tile").nth(1).click()
    expect(page.get_by_label("Sample", exact=True).get_by_role("slider")).to_be_visible()
    page.get_by_label("Sample", exact=True).get_by_role("slider").fill("20")
    keep_samples(run, "image", 14)
    expect(page.locator("thead th").nth(2)).to_have_text("step 14newest")
    expect(page.locator(".tile[aria-pressed]")).to_have_attribute("data-step", "10")
    expect(page.get_by_label("Sample", exact=True).get_by_role("button", name="step 14")).to_be_visible()
    slider = page.locator(".slider")
    assert slider.get_by_role("slider").input_value() == "20" and "20%" in slider.get_attribute("style")


def test_what_is_missing_or_broken_is_said_and_markup_is_text(site, runs, page):
    run = make_run(runs, "damaged", "image", steps=10)
    table = run.folder / "samples" / "000010" / "samples.jsonl"
    first, second = (json.loads(line) for line in table.read_text().splitlines())
    (runs / "damaged" / first["path"]).unlink()
    odd = [first, second | {"path": "../../../../etc/passwd"}, {"prompt": "<img src=x>", "rewards": 3, "path": "samples/none.png"}]
    table.write_text("\n".join(json.dumps(record) for record in odd) + '\n{"step": 10, "pr\n')
    opened(page, site, "run=damaged")
    for told in ("picture missing", "broken record", "Step 10: 1 line is broken and left out.", "<img src=x>"):
        expect(page.get_by_text(told).first).to_be_visible()
    page.locator(".tile").nth(1).click()
    expect(page.get_by_label("Sample", exact=True).get_by_text("picture missing")).to_be_visible()


def test_many_prompts_are_turned_in_pages_and_filtered(site, runs, page):
    run = make_run(runs, "many", "text", steps=10)
    told = [
        {"prompt_id": f"p{k}", "prompt": f"number {k}", "sample_id": "s00", "seed": k, "rewards": {"task": k / 200}}
        for k in range(200)
    ]
    run.save_samples(30, [f"answer {k}" for k in range(200)], told)
    opened(page, site, "run=many")
    expect(page.get_by_text("1–12 of 202 prompts")).to_be_visible()
    assert page.locator(".tiles tbody tr").count() == 12
    page.get_by_role("button", name="Next page").click()
    expect(page.get_by_text("13–24 of 202 prompts")).to_be_visible()
    page.get_by_label("Filter").fill("task>0.97 number")
    expect(page.get_by_text("5 prompts")).to_be_visible()  # 195 to 199
    page.get_by_label("Order").first.click()
    page.get_by_role("option", name="highest score").click()
    expect(page.locator(".tiles tbody th").first).to_have_text("number 199")


def test_a_group_shows_what_every_token_was_worth(site, texts, page):
    opened(page, site, f"run={texts}&view=groups")
    expect(page.get_by_role("heading", name="<u>2+2=")).to_be_visible()
    first, second = page.locator(".member").all()
    expect(first).to_have_class(re.compile("p3"))  # half of the largest advantage
    expect(first.locator(".worth")).to_have_text("▲ +0.75")
    expect(second).to_have_class(re.compile("n5"))
    expect(second).to_contain_text("… 8 more tokens")
    token = first.locator(".tokens span").nth(1)
    expect(token).to_have_text("<b>")
    expect(token).to_have_attribute("title", "advantage −1 · entropy 0 nats · probability 0.1353")
    strong = first.locator(".tokens span").first
    assert strong.evaluate("element => getComputedStyle(element).backgroundColor") != "rgba(0, 0, 0, 0)"
    page.get_by_label("entropy", exact=True).check()
    expect(page.locator(".legend")).to_contain_text("entropy of the policy before each token")
    expect(first.locator(".tokens.color-entropy")).to_be_visible()
    page.get_by_label("none", exact=True).check()
    expect(page.locator(".legend")).to_have_count(0)
    first.locator(".tokens").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(first.locator("output")).to_contain_text("“<b>” advantage −1")


def test_films_move_where_there_are_some(site, runs, page):
    run = make_run(runs, "moving", "control", steps=10)
    frames = [Image.new("P", (8, 8), color) for color in (0, 1)]
    for step in (0, 10):
        file = io.BytesIO()
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=50)
        told = [{"prompt_id": "paths", "prompt": "paths", "sample_id": "s00", "rewards": {"return": step / 10}}]
        run.save_samples(step, torch.full((1, 3, 8, 8), 0.5), told, {"paths": file.getvalue()})
    opened(page, site, "run=moving")
    page.get_by_role("button", name="paths, step 10").click()
    films = page.get_by_label("Sample", exact=True).locator("picture img")
    expect(films).to_have_count(2)
    for film in films.all():
        assert ".gif" in film.get_attribute("src") and film.evaluate("image => image.decode().then(() => image.naturalWidth)") == 8


@pytest.mark.parametrize("kind", ["control", "prune", "image"])
def test_every_branch_says_what_to_do_where_there_is_nothing(runs, kind):
    name = f"bare-{kind}"
    run = make_run(runs, name, kind, steps=1)
    for folder in (run.folder / "samples").iterdir():
        for file in folder.iterdir():
            file.unlink()
    shelf, view = tiles.Shelf(), RunView.find(runs, name)
    assert ("Draw rollouts" if kind == "control" else "No samples yet") in show(shelf, view, Asked()).body
    assert "No training groups" in show(shelf, view, Asked("Training groups")).body
