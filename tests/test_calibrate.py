"""Moments and block statistics of dense trajectories: weights of the steps, packages of layers, both halves of guidance."""

import math

import pytest
import torch
from prunable import forward, network

from flows.load import Model
from flows.sampler import Sampler
from pruning.build import dense_policy
from pruning.calibrate import Calibration, Clock, Moments, measuring, packages
from pruning.evidence import draw_pairs, observe
from pruning.sites import Group, Span, find_groups
from studio.config import component
from studio.errors import ConfigError
from studio.types import Prompts


def test_moments_by_hand():
    """Rows (1, 2), (3, 0) of weight 1 and (1, 1) of weight 2: total 4."""
    full, diagonal = Moments(), Moments()
    for each in (full, diagonal):
        each.add(torch.tensor([[1.0, 2], [3, 0]]), 1.0, full=each is full)
        each.add(torch.tensor([[1.0, 1]]), 2.0, full=each is full)
        assert each.total == 4 and each.mean.tolist() == [1.5, 1.0]
        assert each.diagonal().tolist() == [3.0, 1.5]  # (1 + 9 + 2)/4, (4 + 0 + 2)/4
    assert full.gram.tolist() == [[3.0, 1.0], [1.0, 1.5]]  # off: (2 + 0 + 2)/4
    assert full.covariance().tolist() == [[0.75, -0.5], [-0.5, 0.5]]


def test_moments_are_torch_s():
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1
    weights = torch.cat([torch.full((100,), w) for w in (1.2, 0.9, 0.8)])
    moments = Moments()
    for at, weight in enumerate((1.2, 0.9, 0.8)):
        moments.add(x[at * 100 : at * 100 + 100], weight, full=True)
    torch.testing.assert_close(moments.covariance(), torch.cov(x.double().T, correction=0, aweights=weights), rtol=1e-5, atol=1e-6)


def test_the_clock_falls_with_the_logarithm():
    clock, weights = Clock(10, 1.2, 0.8), []
    for step in range(10):
        clock.at(step)
        weights.append(clock.weight)
    assert weights[0] == pytest.approx(1.2) and weights[-1] == pytest.approx(0.8)
    # t = 6 of 10: 0.8 + 0.4·ln 5/ln 10
    assert weights[5] == pytest.approx(0.8 + 0.4 * math.log(5) / math.log(10))
    assert weights == sorted(weights, reverse=True)
    alone = Clock(1, 1.2, 0.8)
    alone.at(0)
    assert alone.weight == 1.2


def test_packages_keep_groups_of_one_consumer_together():
    groups = [g for g in find_groups(network("flux")) if g.consumers]
    for count in range(1, 12):
        parts = packages(groups, count)
        assert [g.name for part in parts for g in part] and sorted(g.name for p in parts for g in p) == sorted(
            g.name for g in groups
        )
        homes = [{s.module for g in part for s in g.consumers} for part in parts]
        assert sum(map(len, homes)) == len(set().union(*homes))  # no consumer is measured twice
        assert len(parts) == min(count, 9) and all(parts)  # 2 blocks of attention, text and image layers, 3 single blocks
    assert packages(groups, 1) == [[*sorted(groups, key=[g for p in packages(groups, 9) for g in p].index)]]


@pytest.fixture(scope="module")
def pairs():
    return draw_pairs(component("prompts", "shapes").options.build(0), 3, 0)


def policy_of(**options):
    return dense_policy(Model(text_length=1), Sampler(steps=3, eval_steps=3, **options), 0)


@pytest.fixture(scope="module")
def policy():
    return policy_of()


def assert_equal_moments(a: Moments, b: Moments, tolerance: float) -> None:
    assert a.total == pytest.approx(b.total)
    torch.testing.assert_close(a.mean, b.mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.gram, b.gram, rtol=tolerance, atol=tolerance)


def test_moments_do_not_depend_on_packages_or_batches(policy, pairs):
    groups = [g for g in find_groups(policy.model) if g.kind in ("heads", "neurons")]
    whole, parts, small = (
        observe(policy, groups, pairs, Calibration(batch=batch, packages=count), frozenset({"gram"}))
        for batch, count in ((3, 1), (3, 4), (2, 1))
    )
    assert whole.inputs.keys() == {span.module for g in groups for span in g.consumers} == parts.inputs.keys()
    for name, moments in whole.inputs.items():
        assert torch.equal(moments.gram, parts.inputs[name].gram) and torch.equal(moments.mean, parts.inputs[name].mean)
        assert_equal_moments(moments, small.inputs[name], 1e-4)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_what_is_measured_is_what_the_layer_read_with_the_weight_of_its_step(pairs, guidance):
    """With guidance both halves of the doubled batch are read: gates act on both."""
    policy = policy_of(guidance=guidance)
    groups = [g for g in find_groups(policy.model) if g.name.endswith("blocks.1.ff")]
    (name,) = [span.module for span in groups[0].consumers]
    calls: list[torch.Tensor] = []
    hook = policy.model.get_submodule(name).register_forward_pre_hook(lambda _, given: calls.append(given[0].detach()))
    with torch.no_grad():
        policy.latents(pairs.prompts.text, pairs.seeds)
    hook.remove()
    assert len(calls) == 3 and len(calls[0]) == (6 if guidance > 1 else 3)
    # 1.2, 0.8 + 0.4·ln 2/ln 3, 0.8
    clock = [1.2, 0.8 + 0.4 * math.log(2) / math.log(3), 0.8]
    rows = [x.flatten(0, -2).double() for x in calls]
    total = sum(w * len(x) for w, x in zip(clock, rows, strict=True))
    gram = sum(w * x.T @ x for w, x in zip(clock, rows, strict=True)) / total
    mean = sum(w * x.sum(0) for w, x in zip(clock, rows, strict=True)) / total
    full = observe(policy, groups, pairs, Calibration(batch=3), frozenset({"gram"})).inputs[name]
    square = observe(policy, groups, pairs, Calibration(batch=3), frozenset({"square"})).inputs[name]
    assert full.total == pytest.approx(total)
    torch.testing.assert_close(full.gram, gram, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(full.mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(square.diagonal(), gram.diagonal(), rtol=1e-4, atol=1e-5)
    assert square.gram.ndim == 1  # no more than the diagonal was kept


def test_nothing_is_run_where_nothing_is_needed(pairs):
    found = observe(None, [], pairs, Calibration(), frozenset({"gradient"}))  # type: ignore[arg-type]
    assert not (found.inputs or found.outputs or found.similarity)


def test_the_mean_of_a_modulation_output(policy, pairs):
    groups = [g for g in find_groups(policy.model) if g.kind == "modulation"][:1]
    name, made = groups[0].producers[0].module, []
    hook = policy.model.get_submodule(name).register_forward_hook(lambda _, given, y: made.append(y.detach()))
    steady = Calibration(batch=3, weight_first=1.0, weight_last=1.0)
    found = observe(policy, groups, pairs, steady, frozenset({"fill"})).fill(groups)
    hook.remove()
    torch.testing.assert_close(found[groups[0].name], torch.cat(made).mean(0), rtol=1e-4, atol=1e-6)


def test_hooks_are_gone_afterwards():
    net = network("sd3")
    groups = find_groups(net)
    with pytest.raises(RuntimeError, match="stop"), measuring(net, groups, Clock(1, 1.0, 1.0), full=True) as found:
        forward("sd3", net)()
        raise RuntimeError("stop")
    before = {name: moments.total for name, moments in found.inputs.items()}
    forward("sd3", net)()
    assert before and before == {name: moments.total for name, moments in found.inputs.items()}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_pairs():
    source = component("prompts", "shapes").options
    pairs = draw_pairs(source.build(0), 5, 0)
    assert len(set(pairs.seeds)) == 5 and len(pairs) == 5
    assert draw_pairs(source.build(0), 3, 0).seeds == pairs.seeds[:3]  # a row's noise is its own
    assert set(draw_pairs(source.build(0), 5, 0, one_noise=True).seeds) == {pairs.seeds[0]}
    assert set(draw_pairs(source.build(0), 5, 1).seeds).isdisjoint(pairs.seeds)
    assert [part.seeds for part in pairs.batches(2)] == [pairs.seeds[:2], pairs.seeds[2:4], pairs.seeds[4:]]


def test_no_prompts_to_calibrate_on(tmp_path):
    class Nothing:
        def next(self, count: int) -> Prompts:
            return Prompts([], [], [])

    with pytest.raises(ConfigError, match="recipe.prompts: expected prompts to calibrate on, got none"):
        draw_pairs(Nothing(), 3, 0)  # type: ignore[arg-type]
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="recipe.prompts.*expected at least one prompt"):
        draw_pairs(component("prompts", "file", train=str(tmp_path / "empty.txt")).options.build(0), 3, 0)


def test_a_group_without_consumers_takes_part_in_no_package_of_another():
    groups = [
        Group("a", "blocks", 1, 1),
        Group("b", "neurons", 2, 1, (), (Span("x"),)),
        Group("c", "heads", 2, 1, (), (Span("x"),)),
    ]
    assert [[g.name for g in part] for part in packages(groups, 5)] == [["a"], ["b", "c"]]
