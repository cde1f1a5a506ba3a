"""Criteria on layers small enough to do by hand, and what must not change them."""

import math

import pytest
import torch
from prunable import forward, network
from torch import nn

from flows.denoise import RowNoise
from flows.load import Model
from flows.sampler import Sampler
from pruning.blocks import BlockInfluence
from pruning.build import dense_policy, ordered, score
from pruning.calibrate import Calibration, Clock, Moments, Statistics, measuring
from pruning.compensate import compensated, damped
from pruning.evidence import draw_pairs, loss_gradients
from pruning.scores import OBS, Evidence, Magnitude, Random, Taylor, Wanda, removal_order, saliency
from pruning.sites import Group, Span, find_groups
from studio.config import component
from studio.errors import ConfigError
from studio.seeds import row_seed


def neurons(units: int = 3, size: int = 1) -> Group:
    return Group("m", "neurons" if size == 1 else "heads", units, 1, (Span("up", size),), (Span("down", size),))


def layers(down, up=None) -> nn.ModuleDict:
    """The consumer with these weights, and a producer of matching width."""
    down = torch.as_tensor(down)
    up = torch.zeros(down.shape[1], 2) if up is None else torch.as_tensor(up)
    net = nn.ModuleDict({"up": nn.Linear(up.shape[1], up.shape[0]), "down": nn.Linear(down.shape[1], down.shape[0])})
    with torch.no_grad():
        net["up"].weight.copy_(up)
        net["down"].weight.copy_(down)
    return net


def seen(net, groups, x=None, gradients=None, seed: int = 0) -> Evidence:
    statistics = Statistics()
    if x is not None:
        moments = statistics.inputs["down"] = Moments()
        moments.add(x, 1.0, full=True)
    return Evidence(net, groups, statistics, lambda threshold: gradients or {}, seed)


DOWN = torch.tensor([[1.0, 0, 3], [2, 4, 1]])


def test_magnitude_by_hand():
    # columns (1, 2), (0, 4), (3, 1): squared norms 5, 16, 10
    assert Magnitude()(seen(layers(DOWN), [neurons()]))["m"].tolist() == [5, 16, 10]
    wide = layers(torch.cat([DOWN, DOWN[:, :1]], 1))  # two units of two columns: 5 + 16, 10 + 5
    assert Magnitude()(seen(wide, [neurons(2, 2)]))["m"].tolist() == [21, 15]


def test_magnitude_of_a_layer_that_nothing_reads_counts_its_rows():
    group = Group("m", "modulation", 3, 1, (Span("up"),), ())
    net = layers(DOWN, up=[[1.0, 2], [0, 1], [2, 2]])
    assert Magnitude()(seen(net, [group]))["m"].tolist() == [5, 1, 8]


def test_magnitude_adds_both_outputs_of_joint_attention():
    group = Group("m", "neurons", 3, 1, (), (Span("down"), Span("other")))
    net = layers(DOWN)
    net["other"] = nn.Linear(3, 1)
    with torch.no_grad():
        net["other"].weight.copy_(torch.tensor([[1.0, 2, 3]]))
    assert Magnitude()(seen(net, [group]))["m"].tolist() == [6, 20, 19]


def test_wanda_by_hand():
    # inputs (1, 0, 2), (1, 2, 0): mean squares 1, 2, 2; times 5, 16, 10
    x = torch.tensor([[1.0, 0, 2], [1, 2, 0]])
    assert Wanda()(seen(layers(DOWN), [neurons()], x))["m"].tolist() == [5, 32, 20]


def test_wanda_of_unit_inputs_is_magnitude():
    evidence = seen(layers(DOWN), [neurons()], torch.eye(3) * math.sqrt(3))
    torch.testing.assert_close(Wanda()(evidence)["m"], Magnitude()(evidence)["m"], rtol=1e-6, atol=0)


def test_the_variance_of_a_modulation_output():
    group = Group("m", "modulation", 2, 1, (Span("up"),), ())
    evidence = seen(layers(DOWN), [group])
    moments = evidence.statistics.outputs["up"] = Moments()
    moments.add(torch.tensor([[1.0, 5], [3, 5]]), 1.0, full=False)  # means 2, 5; variances 1, 0
    for criterion in (Wanda(), OBS()):
        assert criterion(evidence)["m"].tolist() == [1, 0]


@pytest.mark.parametrize("column", range(3))
def test_saliency_is_the_error_of_removing_a_column_and_refitting_the_others(column):
    draws = torch.Generator().manual_seed(1)
    weight, x = torch.randn(2, 3, generator=draws).double(), torch.randn(20, 3, generator=draws).double()
    gram = x.T @ x
    made = compensated(weight, gram, torch.tensor([column]), damping=0.0)
    assert saliency(weight, gram, 1)[column].item() == pytest.approx(((x @ (made - weight).T) ** 2).sum().item(), rel=1e-9)


def test_head_saliency_by_hand():
    """H⁻¹ = [[2, 1], [1, 3]]: its Cholesky factor has squares 2 and 3 - 1/2. W = [[4, 5]]: 16/2 + 25/2.5 = 18."""
    h = torch.linalg.inv(torch.tensor([[2.0, 1], [1, 3]], dtype=torch.float64))
    assert saliency(torch.tensor([[4.0, 5]]), h, 2).tolist() == pytest.approx([18])
    # as two units of one column: 16/2 and 25/3
    assert saliency(torch.tensor([[4.0, 5]]), h, 1).tolist() == pytest.approx([8, 25 / 3])


def test_the_block_of_a_head_is_its_own():
    """Block-diagonal H: each head as if alone."""
    draws = torch.Generator().manual_seed(2)
    parts = [(lambda a: a @ a.T)(torch.randn(3, 5, generator=draws).double()) for _ in range(2)]
    weight = torch.randn(4, 6, generator=draws)
    alone = [saliency(weight[:, i * 3 : i * 3 + 3], parts[i], 3) for i in range(2)]
    torch.testing.assert_close(saliency(weight, torch.block_diag(*parts), 3), torch.cat(alone))


def random_problem(columns: int = 8):
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(50, columns, generator=draws).double() @ torch.randn(columns, columns, generator=draws).double()
    return torch.randn(5, columns, generator=draws).double(), x.T @ x / 50


def test_one_at_a_time_takes_the_column_of_least_further_error():
    """Against trying every column, with a refit of all that are left."""
    weight, h = random_problem()
    place = removal_order([(weight, h, Span("down"))], 8, rounds=8)
    gone: list[int] = []
    for turn in range(8):

        def after(column: int) -> float:
            lost = compensated(weight, h, torch.tensor([*gone, column]), damping=0.0) - weight
            return (lost @ h @ lost.T).trace().item()

        best = min((c for c in range(8) if c not in gone), key=after)
        assert place[best] == turn
        gone.append(best)


def test_of_two_equal_inputs_one_goes_first_and_the_other_late():
    """Together they carry the most: once one has gone, the other stands for both."""
    weight = torch.tensor([[3.0, 3.0, 4.0, 1.0]])
    h = torch.eye(4)
    h[0, 1] = h[1, 0] = 1 - 1e-6
    place = removal_order([(weight, h.double(), Span("down"))], 4, rounds=4)
    assert place.tolist() == [0, 3, 2, 1] or place.tolist() == [3, 0, 2, 1]


@pytest.mark.parametrize("rounds", [1, 3, 8, 20])
def test_every_unit_has_a_place_and_a_dead_column_the_first(rounds):
    weight, h = random_problem()
    weight[:, 5] = 0
    place = removal_order([(weight, h, Span("down"))], 8, rounds=rounds)
    assert sorted(place.tolist()) == list(range(8)) and place[5] == 0
    by_head = removal_order([(weight, h, Span("down", 2))], 4, rounds=rounds)
    assert sorted(by_head.tolist()) == [0, 1, 2, 3]


def test_reciprocal_rank_fusion_by_hand():
    """Ranks (least important first) 1 2 3 4 and 4 2 1 3 of two outputs; score 1/(60 + a) + 1/(60 + b):
    u0 1/61 + 1/64 = .032018, u1 2/62 = .032258, u2 1/63 + 1/61 = .032266, u3 1/64 + 1/63 = .031498: u2, u1, u0, u3 go in turn."""
    eye = torch.eye(4)
    first, second = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[4.0, 2, 1, 3]])
    place = removal_order([(first, eye, Span("a")), (second, eye, Span("b"))], 4, rounds=1)
    assert place.tolist() == [2, 1, 0, 3]


def test_obs_reads_its_damped_gram():
    draws = torch.Generator().manual_seed(5)
    x, net = torch.randn(40, 3, generator=draws), layers(DOWN)
    found = OBS(damping=0.3, rounds=1)(seen(net, [neurons()], x))["m"]
    wanted = saliency(DOWN, damped(x.T @ x / 40, 0.3), 1)
    assert found.tolist() == torch.argsort(torch.argsort(wanted)).tolist()


@pytest.mark.parametrize("factor", [0.1, 7.0])
def test_a_scale_moved_between_an_input_and_its_column_changes_nothing(factor):
    draws = torch.Generator().manual_seed(6)
    x, weight = torch.randn(40, 3, generator=draws).double() + 0.5, torch.randn(2, 3, generator=draws).double()
    scale = torch.tensor([1.0, factor, 1.0], dtype=torch.float64)
    moved, rest = weight / scale, x * scale
    torch.testing.assert_close(saliency(moved, rest.T @ rest, 1), saliency(weight, x.T @ x, 1), rtol=1e-9, atol=0)
    before, after = (Wanda()(seen(layers(w), [neurons()], v))["m"] for w, v in ((weight, x), (moved, rest)))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=0)


def test_random_depends_on_the_seed_and_the_name_only():
    groups = [Group("b", "neurons", 3, 1), Group("a", "heads", 4, 1)]
    both = Random()(seen(layers(DOWN), groups, seed=1))
    torch.rand(5)
    alone = Random()(seen(nn.Linear(1, 1), groups[1:], seed=1))
    assert torch.equal(both["a"], alone["a"]) and not torch.equal(both["a"][:3], both["b"])
    assert not torch.equal(Random()(seen(layers(DOWN), groups, seed=2))["a"], both["a"])


def taylor_problem():
    """Two units; weights and gradients with opposite signs inside a unit."""
    net = layers([[1.0, -2]], up=[[1.0, 2], [3, 4]])
    with torch.no_grad():
        net["up"].bias.copy_(torch.tensor([1.0, 10]))
    gradients = {
        "up.weight": torch.tensor([[1.0, -1], [2, 0]]),
        "up.bias": torch.tensor([-0.5, 0.1]),
        "down.weight": torch.tensor([[3.0, 1]]),
    }
    return seen(net, [neurons(2)], gradients=gradients)


def test_taylor_by_hand():
    """Products: rows (1, -2), (6, 0); biases -0.5, 1; columns 3, -2."""
    assert Taylor()(taylor_problem())["m"].tolist() == pytest.approx([1 + 2 + 0.5 + 3, 6 + 1 + 2])
    assert Taylor(per_weight=False)(taylor_problem())["m"].tolist() == pytest.approx([abs(1 - 2 - 0.5 + 3), 6 + 1 - 2])


def test_influence_of_blocks():
    net = network("sd3")
    groups = [g for g in find_groups(net) if g.kind == "blocks"]
    with torch.no_grad():  # the first block adds nothing: all that it writes to the streams is 0
        for part in ("attn.to_out.0", "attn.to_add_out", "ff.net.2", "ff_context.net.2"):
            layer = net.get_submodule(f"transformer_blocks.0.{part}")
            layer.weight.zero_()
            layer.bias.zero_()
    with measuring(net, groups, Clock(1, 1.0, 1.0), full=False) as found:
        forward("sd3", net)()
    scores = BlockInfluence()(Evidence(net, groups, found, lambda threshold: {}, 0))
    assert abs(scores["transformer_blocks.0"].item()) < 1e-6
    assert all(scores[g.name] > 1e-3 for g in groups[1:])
    # by hand, from what the second block was given and gave: both streams' tokens in one mean
    kept = {}
    block = net.transformer_blocks[1]
    hook = block.register_forward_hook(lambda _, args, kwargs, answer: kept.update(kwargs, new=answer), with_kwargs=True)
    forward("sd3", net)()
    hook.remove()
    text, image = kept["new"]
    pairs = [(kept["encoder_hidden_states"], text), (kept["hidden_states"], image)]
    cosines = torch.cat([((a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)).flatten() for a, b in pairs])
    assert scores["transformer_blocks.1"].item() == pytest.approx(1 - cosines.mean().item(), abs=1e-5)


def test_influence_is_of_blocks_only():
    with pytest.raises(ConfigError, match=r"sites.kinds \[blocks\] for block_influence, got sites such as m"):
        BlockInfluence()(seen(layers(DOWN), [neurons()]))


def test_logits_start_in_the_order_of_a_criterion():
    groups = [Group("a", "neurons", 2, 10), Group("b", "neurons", 2, 1)]
    scores = {"a": torch.tensor([4.0, 30]), "b": torch.tensor([1.0, 2])}
    # per parameter 0.4, 3, 1, 2: ranks 1/8 7/8 3/8 5/8, so 2 ± 2·(3/4, 3/4, 1/4, 1/4)
    found = ordered(groups, scores, 2.0, 2.0, Magnitude())
    assert found["a"].tolist() == [0.5, 3.5] and found["b"].tolist() == [1.5, 2.5]
    within = ordered(groups, scores, 2.0, 2.0, OBS())  # scores within a module only
    assert within["a"].tolist() == within["b"].tolist() == [1.0, 3.0]


# on the bundled pipeline


@pytest.fixture(scope="module")
def policy():
    return dense_policy(Model(text_length=1), Sampler(steps=3, eval_steps=3), 0)


@pytest.fixture(scope="module")
def pairs():
    return draw_pairs(component("prompts", "shapes").options.build(0), 4, 0)


def one_step(policy, pairs, sigma: float, names) -> tuple[float, dict]:
    """The flow-matching loss at one sigma on own samples, and its gradients, with plain autograd."""
    with torch.no_grad():
        x0 = policy.latents(pairs.prompts.text, pairs.seeds)
    noise = RowNoise([row_seed(seed, f"taylor/{sigma}", 0) for seed in pairs.seeds], x0.shape[1:])()
    named = {name: p for name, p in policy.model.named_parameters() if name.rpartition(".")[0] in names}
    for p in named.values():
        p.requires_grad_(True)
    v = policy.velocity(pairs.prompts.text)((1 - sigma) * x0 + sigma * noise, x0.new_full((len(x0),), sigma))
    loss = ((v - (noise - x0)) ** 2).mean()
    found = dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))
    for p in named.values():
        p.requires_grad_(False)
    return loss.item(), found


@pytest.fixture(scope="module")
def feed_forward(policy):
    return [g for g in find_groups(policy.model) if g.name.endswith("0.ff")]


def test_taylor_of_one_step_is_plain_taylor(policy, pairs, feed_forward):
    (group,) = feed_forward
    names = [span.module for span in (*group.producers, *group.consumers)]
    sigmas = policy.grid(3)[:-1].flip(0).tolist()
    steps = [one_step(policy, pairs, sigma, names) for sigma in sigmas]
    assert steps[0][0] > steps[1][0]  # with threshold 1 the second step is not taken
    weights = {name: p.detach() for name, p in policy.model.named_parameters()}
    made, read = names
    products = {name: weights[name] * g for name, g in steps[0][1].items() if g is not None}
    plain = products[f"{made}.weight"].abs().sum(1) + products[f"{made}.bias"].abs() + products[f"{read}.weight"].abs().sum(0)
    signed = products[f"{made}.weight"].sum(1) + products[f"{made}.bias"] + products[f"{read}.weight"].sum(0)

    def by(criterion, batch=2):
        return score(policy, feed_forward, criterion, pairs, Calibration(rows=4, batch=batch), 0)[group.name]

    torch.testing.assert_close(by(Taylor(threshold=1.0)), plain, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(by(Taylor(threshold=1.0, per_weight=False)), signed.abs(), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(by(Taylor(threshold=1.0), batch=3), plain, rtol=1e-4, atol=1e-9)  # noise is a row's own
    summed = loss_gradients(policy, feed_forward, pairs, Calibration(rows=4, batch=4), 0.0)
    for name in (f"{made}.weight", f"{read}.weight"):
        torch.testing.assert_close(summed[name], sum(step[1][name] for step in steps), rtol=1e-4, atol=1e-8)
    assert not any(p.requires_grad for p in policy.model.parameters())


@pytest.mark.parametrize("name", ["random", "magnitude", "wanda", "obs", "taylor"])
def test_criteria_score_every_unit_of_the_bundled_pipeline(policy, pairs, name):
    groups = [g for g in find_groups(policy.model) if g.kind in ("heads", "neurons", "modulation")]
    groups = [g for g in groups if "blocks.0" in g.name or g.kind == "heads"]
    found = score(policy, groups, component("criterion", name).options, pairs, Calibration(rows=4, batch=4), 0)
    assert {g.name: g.units for g in groups} == {name: len(value) for name, value in found.items()}
    assert all(value.isfinite().all() and len(value.unique()) > 1 and (value >= 0).all() for value in found.values())
