"""Metrics as columns, smoothed and thinned; maps per denoising step: all against numbers by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_runs import make_run

from studio.run_view import RunView
from ui import curves
from ui.curves import Curves, Reader, merged, smoothed, thinned
from ui.heat import Heat, Scale, heat, stepwise


def pairs(found: Curves, name: str) -> list[tuple[int, float]]:
    steps, values = found.series(name)
    return list(zip(steps.tolist(), values.tolist(), strict=True))


def test_of_two_values_of_a_step_the_later_counts_and_a_metric_that_is_lacking_stays():
    old = merged(Curves(), [{"step": 1, "a": 1.0, "b": 5.0}, {"step": 3, "a": 3.0}])
    new = merged(old, [{"step": 2, "a": 2.0}, {"step": 3, "a": 4.0, "c": 9.0}, {"step": 1, "b": None}])
    assert pairs(new, "a") == [(1, 1.0), (2, 2.0), (3, 4.0)]
    assert pairs(new, "b") == [] and pairs(new, "c") == [(3, 9.0)]
    assert new.names == ["a", "c"] and new.latest("a") == 4.0 and new.latest("b") is None
    assert pairs(old, "a") == [(1, 1.0), (3, 3.0)]  # whoever still draws the old ones sees no change


def test_what_is_no_number_at_a_counted_step_is_no_point():
    odd = [{"step": True, "a": 1.0}, {"step": 10**30, "a": 1.0}, {"step": "4", "a": 1.0}]
    odd += [{"step": 5, "a": "x", "b": True, "c": math.inf, "d": math.nan, "e": 10**400, "f": 7}]
    found = merged(Curves(), odd)
    assert found.steps.tolist() == [5] and found.names == ["f"]


def test_a_file_that_grew_is_read_from_where_it_ended_and_one_that_was_replaced_from_its_start(tmp_path, monkeypatch):
    run = make_run(tmp_path, "grows", steps=3)
    view, reader = RunView.open(run.folder), Reader()
    read = []
    monkeypatch.setattr(curves, "merged", lambda old, records, cursor: read.append(len(records)) or merged(old, records, cursor))
    assert reader.read(view).latest("loss/total") == pytest.approx(1 / 3)
    reader.read(view)
    path = run.folder / "metrics.jsonl"
    with open(path, "a") as handle:
        handle.write('{"step": 4, "loss/total": 0.25}\nnot a record\n{"step": 5, "loss/to')
    assert pairs(reader.read(view), "loss/total")[-1] == (4, 0.25)
    assert read == [4, 1]  # steps 0 to 3, nothing at the second look, then one new line
    run.truncate_metrics(2)
    assert reader.read(view).steps.tolist() == [0, 1, 2]


def test_only_so_many_runs_are_remembered(tmp_path):
    views = [RunView.open(make_run(tmp_path, f"r{k}", steps=1).folder) for k in range(4)]
    reader = Reader(most=2)
    for view in (*views[:3], views[1], views[3]):
        reader.read(view)
    assert [folder.name for folder, _ in reader._known] == ["r1", "r3"]


def test_smoothing_weighs_by_distance_in_steps_and_does_not_pull_to_zero():
    assert smoothed(np.array([1, 2, 3]), np.array([0.0, 1.0, 1.0]), 0.5).tolist() == pytest.approx([0, 1 / 1.5, 1.5 / 1.75])
    assert smoothed(np.array([0, 2]), np.array([0.0, 1.0]), 0.5).tolist() == pytest.approx([0, 1 / 1.25])
    steps = np.arange(50) * 7
    assert smoothed(steps, np.full(50, 3.25), 0.9) == pytest.approx(np.full(50, 3.25))
    values = np.array([1.0, 2.0])
    assert smoothed(np.array([1, 2]), values, 0.0) is values


def test_long_runs_are_smoothed_in_thousandths_of_their_length():
    values = np.random.default_rng(0).normal(size=1001)
    steps = np.arange(1001)
    assert smoothed(steps * 10, values, 0.8) == pytest.approx(smoothed(steps, values, 0.8))


def test_thinning_keeps_the_ends_and_every_spike():
    values = np.zeros(10_000)
    values[[3, 5_000, 9_998]] = [2.0, -1.0, 7.0]
    kept = thinned(values, 100)
    assert len(kept) <= 100 and kept[0] == 0 and kept[-1] == 9_999
    assert {3, 5_000, 9_998} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    assert thinned(values[:100], 100).tolist() == list(range(100))


def test_metrics_of_denoising_steps_are_told_from_others():
    names = ["ratio/std@10", "ratio/std@2", "ratio/std", "loss@home", "ratio/above@0"]
    found = stepwise(names)
    assert found == {"ratio/std": {2: "ratio/std@2", 10: "ratio/std@10"}, "ratio/above": {0: "ratio/above@0"}}
    assert list(found["ratio/std"]) == [2, 10]


def test_a_map_has_the_mean_of_each_stretch_and_gaps_where_nothing_was_recorded(monkeypatch):
    monkeypatch.setattr("ui.heat.COLUMNS", 2)
    rows = [{"step": s, "r@0": float(s)} | ({"r@1": 8.0} if s == 4 else {}) for s in (1, 2, 3, 4)] + [{"step": 9, "x": 1.0}]
    found = heat(merged(Curves(), rows), {0: "r@0", 1: "r@1"})
    assert found is not None and found.spans == [(1, 2), (3, 4)] and found.rows == [0, 1]
    assert found.cells[0].tolist() == [1.5, 3.5]
    assert math.isnan(found.cells[1, 0]) and found.cells[1, 1] == 8.0
    assert heat(merged(Curves(), rows), {5: "r@5"}) is None


def shades(*values: float) -> Scale:
    return Scale.of([Heat([(k, k) for k in range(len(values))], [0], np.array([values]))])


def test_shades_begin_at_zero_unless_all_values_are_close_and_put_zero_in_the_middle_of_both_signs():
    assert shades(0.1, 0.4) == Scale(0.0, 0.4) and shades(0.3, 0.4) == Scale(0.3, 0.4)
    both = shades(-0.1, 0.4)
    assert both == Scale(-0.4, 0.4) and both.kind == "div"
    assert [both.level(value) for value in (-0.4, 0.4)] == [0, 23]
    assert both.paint(0) == "color-mix(in oklab,var(--div-1) 0%,var(--div-0))"
    assert both.paint(23) == "color-mix(in oklab,var(--div-4) 100%,var(--div-3))"


def test_one_spike_does_not_take_the_shades_from_all_other_cells():
    found = shades(*[0.5, 2.0] * 100, 50.0)
    assert (found.low, found.high, found.cut) == (0.0, 2.0, True)
    assert found.level(50.0) == found.level(2.0) == 23
