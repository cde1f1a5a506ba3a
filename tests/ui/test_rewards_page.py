"""Rewards over pictures and texts that a person brings: what is laid out, what is answered, who ranks where."""

from __future__ import annotations

import csv
import io
import json
import os
import sys

import httpx
import pytest
from PIL import Image
from playwright.sync_api import expect
from typer.testing import CliRunner

from studio.errors import ConfigError
from ui import given, judged, spawn
from ui.given import Given, Sample
from ui.judged import MEAN_RANK, Outcome

expect.set_options(timeout=15_000)  # a busy machine


@pytest.fixture
def files(tmp_path):
    """Three pictures, two of one size, of 1, 2 and 3 parts of white in 4."""
    (tmp_path / "mine").mkdir()
    for k, side in enumerate((16, 24, 16), 1):
        Image.new("RGB", (side, side), (64 * k,) * 3).save(tmp_path / "mine" / f"p{k}.png")
    return [str(file) for file in sorted((tmp_path / "mine").iterdir())]


def rows(place):
    return [json.loads(line) for line in (place / "samples.jsonl").read_text().splitlines()]


def test_prompts_are_one_for_all_or_one_for_each(files, tmp_path):
    assert [row["prompt"] for row in rows(given.pictures(files, "a cat", tmp_path / "a").place)] == ["a cat"] * 3
    found = given.pictures(files[::-1], "one\n\ntwo \nthree", tmp_path / "b")
    assert [(sample.name, sample.prompt) for sample in found.samples] == [("p1.png", "one"), ("p2.png", "two"), ("p3.png", "three")]
    assert [row["file"] for row in rows(found.place)] == ["0000.png", "0001.png", "0002.png"]
    with pytest.raises(ConfigError, match="one for each of the 3 pictures without a caption, got 2"):
        given.pictures(files, "one\ntwo", tmp_path / "c")


def test_captions_that_were_dropped_as_well_go_before(files, tmp_path):
    (tmp_path / "p1.txt").write_text("from a text\n")
    record = {"path": "samples/000000/p2.png", "prompt": "from a record", "target_text": "HI", "reference": "/etc/passwd.png"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(record | {"image": "/etc/hosts"}) + "\n")
    brought = [*files, str(tmp_path / "p1.txt"), str(tmp_path / "samples.jsonl")]
    found = rows(given.pictures(brought, "the rest", tmp_path / "out").place)
    assert [row["prompt"] for row in found] == ["from a text", "from a record", "the rest"]
    assert found[1] == {"file": "0001.png", "prompt": "from a record", "target_text": "HI"}  # no path of this machine


def test_a_reference_is_another_picture_that_was_dropped(files, tmp_path):
    (tmp_path / "samples.jsonl").write_text(json.dumps({"file": "p2.png", "prompt": "x", "reference": "p1.png"}) + "\n")
    found = given.pictures([*files, str(tmp_path / "samples.jsonl")], "x", tmp_path / "out")
    assert [sample.name for sample in found.samples] == ["p2.png", "p3.png"]
    assert rows(found.place)[0]["reference"] == "reference/p1.png" and (found.place / "reference" / "p1.png").is_file()


def test_what_is_no_picture_or_too_much_is_refused_with_the_remedy(files, tmp_path, monkeypatch):
    (tmp_path / "bad.png").write_text("<svg onload=alert(1)>")
    with pytest.raises(ConfigError, match="bad.png: expected a PNG, WebP or JPEG"):
        given.pictures([str(tmp_path / "bad.png")], "", tmp_path / "a")
    with pytest.raises(ConfigError, match="Drop some into the box"):
        given.pictures([], "", tmp_path / "b")
    monkeypatch.setattr(given, "PICTURES", 2)
    with pytest.raises(ConfigError, match="expected at most 2 at once, got 3"):
        given.pictures(files, "", tmp_path / "c")
    monkeypatch.setattr(given, "TEXT_BYTES", 2**20)
    (tmp_path / "long.txt").write_text("x" * (2**20 + 1))
    with pytest.raises(ConfigError, match="expected at most 1 MB together"):
        given.texts([str(tmp_path / "long.txt")], "", "", tmp_path / "d")
    assert given.shown_name("../../.ssh/a b<c>.png") == "a_b_c_.png"


def test_texts_are_lines_and_records(tmp_path):
    (tmp_path / "said.txt").write_text("three\n\nfour\n")
    record = {"completion": "five\nsix", "prompt": "own", "answer": 11, "image": "/etc/hosts"}
    (tmp_path / "said.jsonl").write_text(json.dumps(record) + "\n")
    found = given.texts([str(tmp_path / "said.txt"), str(tmp_path / "said.jsonl")], "one\ntwo\n", "asked", tmp_path / "out")
    assert [s.name for s in found.samples] == ["line 1", "line 2", "said.jsonl:1", "said.txt:1", "said.txt:2"]
    lines = [json.loads(line) for line in found.place.read_text().splitlines()]
    assert lines[2] == {"completion": "five\nsix", "prompt": "own", "answer": 11}
    assert [line["prompt"] for line in lines] == ["asked", "asked", "own", "asked", "asked"]


def test_ranks_by_hand():
    assert judged.ranks([0.5, None, 2.0, 0.5]) == [2, None, 1, 2]
    outcomes = [
        Outcome("a", columns={"a": (0.1, 0.9, 0.5), "a_part": (9.0, 0.0, 0.0)}),
        Outcome("b", columns={"b": (3.0, 1.0, None)}),
        Outcome("c", problem="no weights"),
    ]
    assert judged.mean_ranks(outcomes) == [2.0, 1.5, None]
    assert judged.ranking(outcomes, "a") == [(1, 1), (2, 2), (0, 3)]
    assert judged.ranking(outcomes, "b") == [(0, 1), (1, 2), (2, None)]
    assert judged.ranking(outcomes, MEAN_RANK) == [(1, 1), (0, 2), (2, None)]


def test_a_table_to_take_away_holds_no_formula():
    samples = [Sample("a.png", "=1+1"), Sample("b.png", 'two, "three"')]
    found = list(csv.reader(io.StringIO(judged.as_csv(samples, [Outcome("a", columns={"a": (0.5, None)})]))))
    assert found == [["name", "prompt", "text", "a"], ["a.png", "'=1+1", "", "0.5"], ["b.png", 'two, "three"', "", ""]]


def test_what_the_command_said(tmp_path):
    brought = Given(tmp_path, (Sample("a", ""), Sample("b", "")))
    answers = [{"file": "0", "clip": 0.5, "clip_x": float("nan")}, {"file": "1", "clip": 1, "clip_x": 2}]
    said = json.dumps({"mean": {}, "files": answers})
    assert judged.answered("clip", 0, f"noise\n{said}\n", "", brought).columns == {"clip": (0.5, 1.0), "clip_x": (None, 2.0)}
    wrong = f"warning\nMissingError: {tmp_path}/0.png: fetch it with `hf download x`.\n"
    assert judged.answered("hps", 3, "", wrong, brought).problem == "0.png: fetch it with `hf download x`. (exit code 3)"
    assert "1 of 2" in judged.answered("x", 0, '{"files": [{"file": "a", "x": 1}]}', "", brought).problem


def test_a_reader_that_leaves_ends_the_command(tmp_path, monkeypatch):
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(spawn, "command", lambda *words: [sys.executable, "-c", code])
    work = judged.judge(Given(tmp_path, ()), ["slow", "never"], tmp_path)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert [outcome.columns for outcome in next(work)] == [{}, {}]
    work.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    monkeypatch.setattr(judged, "PATIENCE_S", 0.0)
    (late,) = [outcomes for outcomes in judged.judge(Given(tmp_path, ()), ["slow"], tmp_path)][-1]
    assert "It was stopped after" in late.problem


def test_the_command_takes_pictures_of_several_sizes(files, tmp_path):
    from studio.cli import app

    Image.new("RGB", (16, 16), (250,) * 3).save(tmp_path / "p4.png")
    place = given.pictures([*files, str(tmp_path / "p4.png")], "gray", tmp_path / "out").place
    (tmp_path / "shade.py").write_text("def of(samples, prompts):\n    return samples.mean((1, 2, 3))\n")
    sys.path.insert(0, str(tmp_path))
    done = CliRunner().invoke(app, ["score", "function", str(place), "--json", "target=shade:of"])
    sys.path.remove(str(tmp_path))
    assert done.exit_code == 0, done.output
    assert [round(row["function"] * 255) for row in json.loads(done.stdout)["files"]] == [64, 128, 192, 250]


def test_the_list_of_rewards_loads_no_model():
    found = {reward.name: reward for reward in judged.offered()}
    assert found["clip"].reads == "image" and found["length"].reads == "text" and found["ocr"].extra == "ocr"
    assert "function" not in found and all(reward.told and reward.license for reward in found.values())


FAKE = """
import json, sys
name, place = sys.argv[2:4]
if name == "scene": sys.exit("ConfigError: " + place + ": describe a scene <b>first</b>.")
count = len(open(place + "/samples.jsonl").readlines())
print(json.dumps({"mean": {}, "files": [{"file": str(k), name: (k * 7 % 5) / 10} for k in range(count)]}))
"""


def test_drop_score_rank_and_take_away(site, page, files, monkeypatch):
    monkeypatch.setattr(spawn, "command", lambda *words: [sys.executable, "-c", FAKE, *words])
    page.goto(f"{site}/rewards")
    expect(page.get_by_text("Nothing scored yet")).to_be_visible()
    page.set_input_files("input[type=file]", files)
    expect(page.locator("table.file-preview")).to_contain_text("p3")
    page.get_by_label("Prompts").fill("<i>gray</i>\nb\nc")
    page.get_by_label("scene", exact=True).check()
    page.get_by_label("aesthetic", exact=True).check()
    page.get_by_role("button", name="Score").click()
    body = page.locator(".ranking tbody tr")
    expect(page.get_by_text("describe a scene <b>first</b>. (exit code 1)")).to_be_visible()
    expect(page.get_by_role("columnheader", name="aesthetic")).to_be_visible()
    expect(body.first).to_contain_text("p3.png")  # 0, .2, .4
    expect(page.get_by_text("<i>gray</i>").last).to_be_visible()
    page.get_by_role("button", name="clip", exact=True).click()
    expect(page.locator("th[aria-sort]")).to_contain_text("clip")
    with page.expect_download() as waited:
        page.get_by_role("link", name="Download as CSV").click()
    found = list(csv.DictReader(waited.value.path().read_text().splitlines()))
    assert [(row["name"], row["clip"]) for row in found] == [("p1.png", "0.0"), ("p2.png", "0.2"), ("p3.png", "0.4")]
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_real_command_scores_texts(site, page):
    page.goto(f"{site}/rewards")
    page.get_by_label("Texts", exact=True).check()
    page.get_by_label("Texts, one a line").fill("one\nthree")
    page.get_by_role("button", name="Score").click()
    expect(page.get_by_role("columnheader", name="length_used")).to_be_visible(timeout=60_000)
    expect(page.locator(".ranking tbody tr")).to_have_count(2)
    expect(page.locator(".ranking")).to_contain_text("5")


def test_a_file_that_was_not_uploaded_is_not_read(site, tmp_path):
    """A raw request, as no browser sends it, that names a picture of this machine."""
    Image.new("RGB", (16, 16)).save(tmp_path / "private.png")
    work = next(d for d in httpx.get(f"{site}/config").json()["dependencies"] if d["api_name"] == "work")
    data = ["Pictures", [{"path": str(tmp_path / "private.png"), "meta": {"_type": "gradio.FileData"}}], "", "x", ["clip"]]
    asked = {"data": data, "fn_index": work["id"], "session_hash": "raw"}
    assert httpx.post(f"{site}/gradio_api/queue/join", json=asked).status_code == 200
    with httpx.stream("GET", f"{site}/gradio_api/queue/data?session_hash=raw", timeout=30) as stream:
        events = [json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")]
    done = next(event for event in events if event["msg"] == "process_completed")
    assert not done["success"] and "private.png" not in json.dumps(done.get("output", {}).get("data", ""))
