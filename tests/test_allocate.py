"""A budget shared out: exact, in whole chunks, with units left in every module, and the same every time."""

import pytest
import torch

from pruning.allocate import Allocation, allocate, quantiles, removable
from pruning.budget import Budget, Target
from pruning.sites import Group, Span
from studio.config import build
from studio.errors import ConfigError


def group(name: str, units: int, *, kind="neurons", size: int = 1) -> Group:
    return Group(name, kind, units, 1, (Span(f"{name}.in", size),), (Span(f"{name}.out", size),))


def drawn(groups, seed: int = 0) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {g.name: torch.randn(g.units, generator=draws) for g in groups}


def gone(groups, kept, costs) -> float:
    return sum((g.units - len(kept[g.name])) * costs[g.name] for g in groups)


def test_by_hand():
    """Costs 2 and 1; ascending scores a1 b0 b2 a0 a2 b1. A budget of 5 takes a1 (2), b0 (1), b2 (1); a0 costs more than is left."""
    groups = [group("a", 3), group("b", 3)]
    scores = {"a": torch.tensor([4.0, 1.0, 5.0]), "b": torch.tensor([2.0, 6.0, 3.0])}
    costs = {"a": 2.0, "b": 1.0}
    kept = allocate(groups, scores, costs, 5.0)
    assert kept["a"].tolist() == [0, 2] and kept["b"].tolist() == [1]
    # per cost the scores of a are 2, 0.5, 2.5: a1 (2), a0 (2), and b0 (1) fill it
    kept = allocate(groups, scores, costs, 5.0, per_cost=True)
    assert kept["a"].tolist() == [2] and kept["b"].tolist() == [1, 2]


def test_a_unit_of_a_higher_score_never_goes_before_one_of_a_lower():
    """What does not fit closes its module; others go on."""
    kept = allocate(
        [group("a", 3), group("b", 3)], {"a": torch.arange(3.0), "b": torch.arange(3.0) + 0.5}, {"a": 3.0, "b": 1.0}, 5.0
    )
    # a0 (3), b0 (1): a1 does not fit into 1, b1 does
    assert kept["a"].tolist() == [1, 2] and kept["b"].tolist() == [2]


@pytest.mark.parametrize("align", [1, 8])
@pytest.mark.parametrize("scope", ["global", "kind", "layer"])
@pytest.mark.parametrize("seed", range(5))
def test_never_more_and_less_by_less_than_the_smallest_chunk_left(seed, scope, align):
    groups = [group("a", 40), group("b", 37), group("h", 12, kind="heads", size=4), group("c", 9)]
    costs = {"a": 3.0, "b": 7.0, "h": 50.0, "c": 1.0}
    scores = drawn(groups, seed)
    for share in torch.linspace(0, 1, 23).tolist():
        remove = share * removable(groups, costs, align=align)
        kept = allocate(groups, scores, costs, remove, scope=scope, align=align)
        removed = gone(groups, kept, costs)
        assert removed <= remove + 1e-6
        step = {g.name: max(1, align // g.producers[0].size) for g in groups}
        left = [g for g in groups if len(kept[g.name]) > step[g.name]]
        chunks = [costs[g.name] * (len(kept[g.name]) % step[g.name] or step[g.name]) for g in left]
        assert not chunks or remove - removed < min(chunks)
        for g in groups:
            assert len(kept[g.name]) in (g.units, *range(step[g.name], g.units + 1, step[g.name]))
            worst = scores[g.name][kept[g.name]].min()
            others = torch.ones(g.units, dtype=torch.bool)
            others[kept[g.name]] = False
            assert not others.any() or scores[g.name][others].max() <= worst  # the best of every module stay


def test_what_is_kept_of_many_heads_is_exact():
    groups = [group(f"b{i}.attn", 20, kind="heads", size=64) for i in range(130)]  # 2600 heads
    costs = {g.name: 327_680.0 for g in groups}
    whole = 2600 * 327_680.0
    for share, count in ((0.68, 1768), (0.5, 1300), (0.999, 2598)):
        kept = Budget(groups, costs, whole, share).keep(drawn(groups))
        assert sum(len(k) for k in kept.values()) == count


def test_scopes():
    """Module b's scores are all above those of module a, heads' above neurons'."""
    groups = [group("a", 10), group("b", 10), group("h", 10, kind="heads", size=1)]
    scores = {"a": torch.arange(10.0), "b": torch.arange(10.0) + 100, "h": torch.arange(10.0) + 1000}
    costs = dict.fromkeys("abh", 1.0)

    def counts(scope):
        kept = allocate(groups, scores, costs, 12.0, scope=scope, min_keep=0)
        return [len(kept[g.name]) for g in groups]

    assert counts("global") == [0, 8, 10]
    assert counts("kind") == [2, 10, 6]  # 8 of 20 neurons, the lowest; 4 of 10 heads
    assert counts("layer") == [6, 6, 6]


def test_the_layer_scope_takes_the_same_share_everywhere():
    groups = [group(f"m{i}", units) for i, units in enumerate((50, 100, 200))]
    kept = allocate(groups, drawn(groups), {g.name: 1.0 for g in groups}, 140.0, scope="layer")
    assert [len(kept[g.name]) for g in groups] == [30, 60, 120]


def test_ranks_in_their_pool():
    groups = [group("a", 2), group("h", 2, kind="heads")]
    scores = {"a": torch.tensor([5.0, 7.0]), "h": torch.tensor([9.0, 6.0])}
    # all: 5 6 7 9 -> 1/8 3/8 5/8 7/8; alone: 1/4 3/4
    everywhere, own = quantiles(groups, scores, "global"), quantiles(groups, scores, "kind")
    assert everywhere["a"].tolist() == [0.125, 0.625] and everywhere["h"].tolist() == [0.875, 0.375]
    assert own["a"].tolist() == [0.25, 0.75] and own["h"].tolist() == [0.75, 0.25]


@pytest.mark.parametrize("align", [8, 16])
@pytest.mark.parametrize("size", [1, 4, 6, 16, 24])
def test_kept_widths_are_multiples(align, size):
    """Also where a head is no divisor of it: 24 rows in multiples of 16 go in pairs."""
    groups = [group("a", 61, size=size), group("b", 48, size=size)]
    for remove in range(0, 90, 7):
        kept = allocate(groups, drawn(groups), {"a": 1.0, "b": 1.0}, float(remove), align=align)
        for g in groups:
            assert len(kept[g.name]) == g.units or len(kept[g.name]) * size % align == 0
    assert any(len(kept[g.name]) < g.units for g in groups)


def test_query_heads_and_the_key_heads_that_they_share_are_both_aligned():
    """4 query heads of 8 rows for a key head of 8: in multiples of 16 the keys decide."""
    shared = Group("a", "heads", 9, 1, (Span("q", 32), Span("k", 8)), (Span("o", 32),))
    kept = allocate([shared], {"a": torch.arange(9.0)}, {"a": 1.0}, 2.0, align=16)
    assert kept["a"].tolist() == list(range(1, 9))


def test_equal_scores_keep_their_order_whatever_their_chunks():
    """0.1 + 0.1 + 0.1 over 3 is above 0.1, eight of them over 8 below: the remainder still goes first."""
    kept = allocate([group("a", 19)], {"a": torch.full((19,), 0.1, dtype=torch.float64)}, {"a": 1.0}, 8.0, align=8)
    assert kept["a"].tolist() == list(range(3, 19))


def test_units_that_every_module_keeps():
    groups = [group("a", 6), group("b", 6)]
    costs, scores = {"a": 1.0, "b": 1.0}, {"a": torch.arange(6.0), "b": torch.arange(6.0) + 10}
    for least, counts in ((0, [0, 5]), (1, [1, 4]), (2, [2, 3])):
        kept = allocate(groups, scores, costs, 7.0, min_keep=least)
        assert [len(kept[g.name]) for g in groups] == counts
    assert removable(groups, costs, min_keep=0) == 12 and removable(groups, costs, min_keep=2) == 8
    assert all(not len(k) for k in allocate(groups, scores, costs, 12.0, min_keep=0).values())


def test_blocks_may_all_go_but_as_wholes():
    blocks = [Group(f"blocks.{i}", "blocks", 1, 10) for i in range(3)]
    kept = allocate(blocks, {b.name: torch.tensor([float(i)]) for i, b in enumerate(blocks)}, {b.name: 10.0 for b in blocks}, 25.0)
    assert [len(kept[b.name]) for b in blocks] == [0, 0, 1]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_larger_budgets_take_what_smaller_ones_took(scope):
    groups = [group("a", 30), group("b", 20)]
    scores, costs = drawn(groups), {"a": 1.0, "b": 1.0}
    before = {g.name: set(range(g.units)) for g in groups}
    for remove in range(49):
        kept = {name: set(k.tolist()) for name, k in allocate(groups, scores, costs, float(remove), scope=scope).items()}
        assert all(kept[name] <= before[name] for name in kept)
        assert sum(map(len, kept.values())) == 50 - remove
        before = kept


def test_ties_go_in_the_order_of_modules_and_units():
    groups = [group("a", 3), group("b", 3)]
    kept = allocate(groups, {"a": torch.zeros(3), "b": torch.zeros(3)}, {"a": 1.0, "b": 1.0}, 3.0)
    assert kept["a"].tolist() == [2] and kept["b"].tolist() == [1, 2]


def test_a_target_below_what_can_remain_is_refused_with_the_number():
    groups = [group("a", 10), group("b", 10)]  # of a network of 40: 18 can go, 22/40 remain
    Budget(groups, {"a": 1.0, "b": 1.0}, 40.0, 0.55)
    with pytest.raises(ConfigError, match=r"recipe.target: expected at least 0.5500, .* min_keep = 1 units \(align 1\), got 0.5"):
        Budget(groups, {"a": 1.0, "b": 1.0}, 40.0, 0.5)


def test_what_remains_and_what_is_expected_to():
    groups = [group("a", 4), group("b", 2)]
    budget = Budget(groups, {"a": 2.0, "b": 5.0}, 40.0, 0.75)
    assert budget.remaining({"a": 1, "b": 2}) == pytest.approx(1 - 6 / 40)
    # open 0.5 of a and 0.2, 1 of b: lost 4·0.5·2 + 0.8·5 = 8 of 40
    opens = {"a": torch.full((4,), 0.5), "b": torch.tensor([0.2, 1.0])}
    assert budget.expected(opens).item() == pytest.approx(0.8)
    kept = budget.keep({"a": torch.arange(4.0), "b": torch.arange(2.0) + 10}, share=0.9)  # 4 of 40
    assert kept["a"].tolist() == [2, 3] and kept["b"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"params": 0.0}, r"target.params: expected the share that remains, in \(0, 1\], got 0"),
        ({"flops": 1.2}, "target.flops: .* got 1.2"),
        ({"latency": -1}, "target.latency"),
        ({}, "exactly one of params, flops and latency, got none"),
        ({"params": 0.8, "flops": 0.7}, "got params, flops"),
        ({"parms": 0.8}, "params"),
    ],
    ids=["nothing remains", "more than all", "negative", "none", "two", "a name with a slip"],
)
def test_targets_that_cannot_be(given, words):
    with pytest.raises(ConfigError, match=words):
        build(Target, given)


def test_a_target_says_its_measure():
    assert (Target(flops=0.7).measure, Target(flops=0.7).share) == ("flops", 0.7)
    assert build(Target, {"params": 1.0}).share == 1.0


@pytest.mark.parametrize("given", [{"align": 0}, {"min_keep": -1}, {"scope": "blok"}])
def test_allocations_that_cannot_be(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        build(Allocation, given)
