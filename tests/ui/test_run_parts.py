"""What the page of a run shows, without a browser: bands, cards, sections, recipe, events, log."""

from __future__ import annotations

import json
import os
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run

from studio.errors import RunError
from studio.run_view import RunView
from ui.bands import bands
from ui.charts import Shown, constant, joint_card, metric_card, twins
from ui.closeup import Closeup
from ui.curves import Curves, Reader, merged
from ui.details import differences, events_section, flat, logs, paths, tail
from ui.head import head
from ui.plot import Band, plot
from ui.sections import sections, split


def curves(**columns: list[float]) -> Curves:
    """Metrics at steps 0, 1, 2 …; a double underscore stands for the slash."""
    length = max(map(len, columns.values()))
    rows = [{name.replace("__", "/"): values[k] for name, values in columns.items() if k < len(values)} for k in range(length)]
    return merged(Curves(), [{"step": k, **row} for k, row in enumerate(rows)])


def data(card: str) -> list[dict]:
    """What a card gives to the browser."""
    return json.loads(unescape(re.search(r'data-series="([^"]*)"', card)[1]))


def test_a_guard_may_move_by_three_deviations_of_the_kept_samples_around_the_mean_of_all_prompts(tmp_path):
    folder = tmp_path / "r"
    (folder / "samples" / "000000").mkdir(parents=True)
    rows = [{"step": 0, "path": f"samples/000000/p{k}.png", "guards": {"dark": value}} for k, value in enumerate((1.0, 3.0))]
    (folder / "samples" / "000000" / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = bands(RunView(folder), curves(sample__dark=[2.5]), {"watch": {"sigmas": 4}})
    assert found["sample/dark"][:2] == (2.5 - 4 * 1.0, 2.5 + 4 * 1.0)  # deviation of 1 and 3 is 1
    assert "4 standard deviations of 2 samples" in found["sample/dark"].told
    assert bands(RunView(folder), Curves(), {})["sample/dark"][:2] == (2.0 - 3, 2.0 + 3)  # no metric yet: mean of the samples


def test_a_band_is_drawn_to_scale_and_a_value_beyond_it_is_said():
    svg = plot({"a": [(0, 0.0), (1, 4.0)]}, title="a", band=Band(1.0, 3.0, ""))
    top, bottom = (float(re.search(r'data-frame="\S+ (\S+) \S+ (\S+)"', svg)[k]) for k in (1, 2))
    low, high = (float(re.search(r'data-bounds="\S+ (\S+) \S+ (\S+)"', svg)[k]) for k in (1, 2))
    y, height = (float(value) for value in re.search(r'class="band".* y="([\d.]+)".*? height="([\d.]+)"', svg).groups())
    unit = (bottom - top) / (high - low)
    assert y == pytest.approx(top + (high - 3.0) * unit, abs=0.1) and height == pytest.approx(2.0 * unit, abs=0.1)
    around = plot({"a": [(0, 2.0), (1, 2.1)]}, title="a", band=Band(-7.0, 9.0, ""))
    low, high = (float(re.search(r'data-bounds="\S+ (\S+) \S+ (\S+)"', around)[k]) for k in (1, 2))
    assert low <= -7 and high >= 9  # also where the curve is far from it
    run = Shown("r", curves(sample__dark=[2.0, 3.5]), {"sample/dark": Band(1.0, 3.0, "told")})
    assert "outside its band" in metric_card("sample/dark", [run])
    assert "outside its band" not in metric_card("sample/dark", [Shown("r", curves(sample__dark=[3.5, 2.0]), run.bands)])


def test_runs_keep_their_color_where_one_lacks_the_metric():
    runs = [Shown("first", curves(a=[1, 2])), Shown("second", curves(b=[5, 6]))]
    card = metric_card("b", runs)
    assert [line["i"] for line in data(card) if line["x"]] == [1] and "--line-2" in card and "stroke:var(--line-1" not in card


def test_the_data_of_a_smoothed_card_are_what_was_measured_and_its_means():
    line = data(metric_card("a", [Shown("r", curves(a=[0.0, 1.0]))], weight=0.5))[0]
    assert (line["x"], line["y"], line["sx"], line["sy"]) == ([0, 1], [0, 1], [0, 1], [0, 0.666667])
    assert "sx" not in data(metric_card("a", [Shown("r", curves(a=[0.0, 1.0]))]))[0]


def test_curves_of_one_scale_share_an_axis_and_others_fill_their_own():
    near = joint_card("t", ["a", "b"], Shown("r", curves(a=[0.0, 1.0], b=[0.5, 0.6])))
    assert "fills its own range" not in near and "h" not in data(near)[1]
    far = joint_card("t", ["a", "b"], Shown("r", curves(a=[0.0, 1.0, 0.5], b=[22.0, 20.0])))
    assert "fills its own range" in far and [line["h"] for line in data(far)] == [[0, 1, 0.5], [1, 0]]
    assert data(far)[1]["y"] == [22, 20]


def test_metrics_that_do_not_move_or_repeat_another_have_no_chart():
    run = Shown("r", curves(reward__mean=[0.1, 0.2], reward__scene=[0.1, 0.2], reward__missing=[0, 0]))
    assert constant("reward/missing", [run]) == 0 and constant("reward/mean", [run]) is None
    assert twins(["reward/mean", "reward/scene"], [run]) == {"reward/scene": "reward/mean"}
    html = sections([run], 0.0)["rewards"]
    assert html.count("<figure") == 1 and "reward/scene = reward/mean" in html and "reward/missing <b>0</b>" in html
    assert not any(part for name, part in sections([run], 0.0).items() if name != "rewards")


def test_every_metric_is_in_one_section():
    names = ("reward/mean", "prune/error", "sample/dark", "ratio/mean", "kl/old", "loss/total", "time/step", "render/start", "odd")
    html = sections(
        [Shown("r", merged(Curves(), [{"step": s, **{name: s + 1.0 * k for k, name in enumerate(names)}} for s in (1, 2)]))], 0.0
    )
    where = {name: [section for section, text in html.items() if f"<b>{name}</b>" in text] for name in names}
    assert [where[name] for name in names] == [
        *(["rewards"], ["pruning"], ["guards"], ["trust"], ["trust"], ["loss"], ["time"], ["more"], ["more"])
    ]


def test_the_seconds_of_a_step_are_shared_out_over_the_newest_steps():
    run = Shown("r", curves(time__step=[99.0, 4.0, 4.0], time__sample=[99.0, 1.0, 1.0], time__reward_wait=[0.0, 0.0, 0.0]))
    assert split(run, 2) == ({"sample": 0.25, "everything else": 0.75}, 4.0)
    assert split(Shown("r", curves(time__step=[1.0], time__sample=[3.0])), 2)[0] == {}  # they do not add up


def test_names_from_a_run_are_shown_as_text():
    evil = '<img src=x onerror="alert(1)">'
    run = Shown("r", merged(Curves(), [{"step": s, evil: s, f"{evil}@0": s, f"x{evil}": 1.0} for s in (1, 2)]))
    text = "".join(sections([run], 0.5).values()) + events_section([{"kind": evil, "step": evil, "t": evil, evil: evil}])
    assert "<img" not in text and text.count("&lt;img") > 6
    assert json.loads(unescape(re.search(r'data-heat="([^"]*)"', text)[1]))["v"] == [[1, 2]]


def test_lines_of_yaml_know_their_place():
    text = "train:\n  betas:\n  - 0.9\n  rate:\n    kind: 'no'\nstages:\n- name: a\n  keep: 1\n- name: b\nseed: 0"
    assert [path for path, _ in paths(text)] == [
        *("train", "train.betas", "train.betas", "train.rate", "train.rate.kind"),
        *("stages", "stages.name", "stages.keep", "stages.name", "seed"),
    ]
    assert "\n".join(line for _, line in paths(text)) == text


def test_recipes_differ_where_a_value_is_another_or_is_lacking():
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
    found = differences({"x": {"seed": 0, "clip": 1.0, "same": True}, "y": {"seed": 1, "same": True}})
    assert found == [("seed", ["0", "1"]), ("clip", ["1.0", "–"])]


def test_alarms_stand_before_what_is_newer():
    kinds = ("alarm", "state", "alarm", "warning")
    html = events_section([{"t": k, "kind": kind, "message": f"M{k}"} for k, kind in enumerate(kinds)])
    assert re.findall(r"message: (M\d)", html) == ["M2", "M0", "M3", "M1"] and "3 to look at" in html
    assert events_section([]) == ""


def test_a_log_is_shown_as_a_terminal_would_have_left_it(tmp_path):
    path = tmp_path / "a.log"
    path.write_bytes(b"old\n" * 300 + b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07end\n 10%\r 50%\r100%\r\n\xff\x00tab\there\n")
    shown = tail(path).split("\n")
    assert len(shown) == 200 and shown[-4:] == ["old", "red end", "100%", "\ufffdtab\there"]


def test_a_log_that_is_a_link_to_elsewhere_is_not_shown(tmp_path):
    run = make_run(tmp_path / "runs", "r", steps=1)
    (tmp_path / "secret.log").write_text("secret")
    (run.folder / "logs" / "out.log").symlink_to(tmp_path / "secret.log")
    (run.folder / "logs" / "rank0.log").write_text("hello")
    assert [path.name for path in logs(RunView.open(run.folder))] == ["rank0.log"]


def test_a_status_that_was_meddled_with_is_shown_as_text(tmp_path):
    run = make_run(tmp_path, "r", steps=1)
    evil = "<img src=x>"
    status = {"state": evil, "step": evil, "total_steps": evil, "eta_s": evil, "started": evil, "reason": evil}
    (run.folder / "status.json").write_text(json.dumps(status | {"heartbeat": 0}))
    html = head(RunView(run.folder), {"algorithm": evil}, [Shown("r", Curves())], [])
    assert "<img" not in html and "&lt;img" in html


@pytest.mark.parametrize("name", ["../runs/r", "/etc", "..", "", "r/../r", "r\x00"])
def test_names_that_lead_elsewhere_are_no_runs(tmp_path, name):
    make_run(tmp_path / "runs", "r", steps=1)
    with pytest.raises(RunError):
        Closeup(tmp_path / "runs").parts(name, [], 0.0)
    html, may = Closeup(tmp_path / "runs").parts("r", [name], 0.0)
    assert may == {"resume"} - {"resume"} and html["recipe"].count("<th") == 0  # nothing is laid over it


def test_what_may_be_asked_of_a_run_follows_its_state(tmp_path):
    make_run(tmp_path, "works", steps=1, state="running").status(pid=os.getpid(), pid_started=None)
    make_run(tmp_path, "stopped", steps=1, state="stopped")
    make_run(tmp_path, "done", steps=1)
    found = {name: Closeup(tmp_path).parts(name, [], 0.0)[1] for name in ("works", "stopped", "done")}
    assert found == {"works": {"stop", "save", "sample"}, "stopped": {"resume"}, "done": set()}


def test_curves_are_drawn_again_only_when_their_file_has_grown(tmp_path, monkeypatch):
    run, drawn = make_run(tmp_path, "r", steps=2), []
    monkeypatch.setattr("ui.closeup.sections", lambda *given: drawn.append(1) or sections(*given))
    closeup = Closeup(tmp_path)
    first = closeup.parts("r", [], 0.0)[0]
    run.event("warning", message="look")
    second = closeup.parts("r", [], 0.0)[0]
    assert len(drawn) == 1 and first["rewards"] is second["rewards"] and "look" in second["events"]
    run.log(3, {"reward/mean": 0.987})
    assert "0.987" in closeup.parts("r", [], 0.0)[0]["rewards"] and len(drawn) == 2
    assert "987" not in first["rewards"]


def test_a_long_run_is_drawn_from_few_points(tmp_path):
    run = make_run(tmp_path, "r", steps=1)
    noise = np.random.default_rng(0).normal(size=5000)
    with open(Path(run.folder) / "metrics.jsonl", "a") as handle:
        handle.writelines(json.dumps({"step": k + 2, "reward/mean": value}) + "\n" for k, value in enumerate(noise))
    card = metric_card("reward/mean", [Shown("r", Reader().read(RunView.open(run.folder)))], weight=0.9)
    line = data(card)[0]
    assert len(line["x"]) <= 400 and len(line["sx"]) <= 200 and max(line["y"]) == pytest.approx(noise.max(), rel=1e-5)
