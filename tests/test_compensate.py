"""Closed-form compensation against least squares, the saliency of one column, and its limits."""

import pytest
import torch
from prunable import forward, network
from torch import nn

from pruning.calibrate import Clock, Moments, measuring
from pruning.compensate import Compensation, apply, compensated, damped, refit
from pruning.gating import gated
from pruning.sites import Group, Span, find_groups
from pruning.surgery import cut

GONE = torch.tensor([1, 4, 5])


def problem(columns: int = 7, outputs: int = 4, tokens: int = 60, seed: int = 0):
    """W [o, n] and correlated inputs X [tokens, n], float64."""
    draws = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=draws, dtype=torch.float64)
    x = torch.randn(tokens, columns, generator=draws, dtype=torch.float64) @ mix + torch.randn(columns, generator=draws)
    return torch.randn(outputs, columns, generator=draws, dtype=torch.float64), x


def others(columns: int, gone: torch.Tensor) -> torch.Tensor:
    return torch.tensor([i for i in range(columns) if i not in gone.tolist()])


def error(weight, made, x) -> float:
    return ((x @ (made - weight).T) ** 2).sum().item()


def test_equals_least_squares_on_the_columns_that_stay():
    weight, x = problem()
    made, kept = compensated(weight, x.T @ x, GONE, damping=0.0), others(7, GONE)
    wanted = torch.linalg.lstsq(x[:, kept], x @ weight.T).solution.T
    torch.testing.assert_close(made[:, kept], wanted, rtol=1e-10, atol=1e-10)
    assert torch.equal(made[:, GONE], torch.zeros(4, 3, dtype=torch.float64))


def test_equals_the_published_form_with_damping():
    """W - W[:, S] (H⁻¹[S, S])⁻¹ H⁻¹[S, :]"""
    weight, x = problem()
    inverse = torch.linalg.inv(damped(x.T @ x, 0.01))
    wanted = weight - weight[:, GONE] @ torch.linalg.inv(inverse[GONE][:, GONE]) @ inverse[GONE]
    torch.testing.assert_close(compensated(weight, x.T @ x, GONE), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("column", range(3))
def test_the_error_of_one_column_is_its_saliency(column):
    weight, x = problem(columns=5)
    gram = x.T @ x
    saliency = (weight[:, column] ** 2).sum() / torch.linalg.inv(gram)[column, column]
    made = compensated(weight, gram, torch.tensor([column]), damping=0.0)
    assert error(weight, made, x) == pytest.approx(saliency.item(), rel=1e-9)


def test_by_hand():
    """The second input is once or twice the first, which takes over once or twice its weight: 3 + 5, 3 + 10."""
    weight = torch.tensor([[3.0, 5.0]])
    for second, wanted in ((1.0, 8.0), (2.0, 13.0)):
        gram = torch.tensor([[1.0, second], [second, second**2]])
        made = compensated(weight, gram, torch.tensor([1]), damping=0.0)
        torch.testing.assert_close(made, torch.tensor([[wanted, 0.0]]))


def test_uncorrelated_inputs_are_plain_deletion():
    weight, _ = problem()
    made = compensated(weight, torch.eye(7), GONE)
    assert torch.equal(made[:, GONE], torch.zeros(4, 3, dtype=torch.float64))
    kept = others(7, GONE)
    torch.testing.assert_close(made[:, kept], weight[:, kept], rtol=1e-14, atol=1e-14)


def test_nothing_and_everything_removed():
    weight, x = problem()
    torch.testing.assert_close(compensated(weight, x.T @ x, torch.tensor([], dtype=torch.int64)), weight, rtol=1e-9, atol=1e-9)
    assert not compensated(weight, x.T @ x, torch.arange(7)).any()


@pytest.mark.parametrize("damping", [0.0, 0.01, 1.0])
def test_never_increases_the_error_of_the_layer(damping):
    """Damping adds ‖ΔK‖² to what is minimized, which deletion does not pay: it holds for any amount of it."""
    for seed in range(40):
        draws = torch.Generator().manual_seed(seed)
        weight, x = problem(columns=9, seed=seed)
        gone = torch.randperm(9, generator=draws)[: 1 + seed % 8]
        deleted = weight.clone()
        deleted[:, gone] = 0
        made = compensated(weight, x.T @ x, gone, damping)
        assert error(weight, made, x) <= error(weight, deleted, x) * (1 + 1e-12)


def test_inputs_that_never_moved_leave_the_others_alone():
    weight, x = problem()
    x[:, [0, 4]] = 0
    for damping in (0.0, 0.01):
        made = compensated(weight, x.T @ x, GONE, damping)
        assert made.isfinite().all() and error(weight, made, x) <= error(weight, weight * (made != 0), x) * (1 + 1e-9)
    assert torch.equal(compensated(weight, torch.zeros(7, 7), GONE)[:, [0, 2, 3, 6]], weight[:, [0, 2, 3, 6]])


def test_damping_is_a_share_of_the_mean_diagonal():
    # diagonal 1, 3: mean 2, a tenth of it is 0.2
    torch.testing.assert_close(damped(torch.tensor([[1.0, 0.5], [0.5, 3.0]]), 0.1), torch.tensor([[1.2, 0.5], [0.5, 3.2]]).double())
    torch.testing.assert_close(damped(torch.zeros(2, 2), 0.1), torch.eye(2).double())


def layer_of(x, weight, *, bias: bool = True):
    """A network of one consumer, its group, and the moments of its inputs."""
    layer = nn.Linear(7, 4, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(weight)
    moments = Moments()
    moments.add(x, 1.0, full=True)
    group = Group("m", "neurons", 7, 1, (), (Span("out"),))
    return nn.ModuleDict({"out": layer}), group, {"out": moments}


def test_with_a_bias_it_fits_the_mean_as_well():
    weight, x = problem()
    net, group, moments = layer_of(x, weight)
    kept = others(7, GONE)
    made, bias = refit(net, [group], {"m": kept}, moments, Compensation(damping=0.0))["out"]
    layer = net["out"]
    wide = torch.cat([x[:, kept], torch.ones(len(x), 1)], dim=1)
    wanted = torch.linalg.lstsq(wide, x @ layer.weight.double().T + layer.bias.double()).solution.T
    torch.testing.assert_close(made[:, kept].double(), wanted[:, :-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias.double(), wanted[:, -1], rtol=1e-4, atol=1e-4)
    assert not made[:, GONE].any()


@pytest.mark.parametrize(("bias", "settings"), [(False, Compensation(damping=0.0)), (True, Compensation(damping=0.0, bias=False))])
def test_without_one_the_bias_stays_and_second_moments_are_fitted(bias, settings):
    weight, x = problem()
    net, group, moments = layer_of(x, weight, bias=bias)
    kept = others(7, GONE)
    made, found = refit(net, [group], {"m": kept}, moments, settings)["out"]
    wanted = torch.linalg.lstsq(x[:, kept], x @ net["out"].weight.double().T).solution.T
    torch.testing.assert_close(made[:, kept].double(), wanted, rtol=1e-4, atol=1e-4)
    assert found is None


def test_a_consumer_that_lost_nothing_or_was_not_measured_is_left_alone():
    weight, x = problem()
    net, group, moments = layer_of(x, weight)
    assert refit(net, [group], {"m": torch.arange(7)}, moments, Compensation()) == {}
    assert refit(net, [group], {"m": torch.arange(3)}, {}, Compensation()) == {}


def test_a_consumer_of_two_groups_is_refitted_once():
    """FLUX's single block reads [heads | neurons] in one layer: what went of either is made up by what stays of both."""
    net = network("flux")
    groups = [g for g in find_groups(net) if g.name.startswith("single_transformer_blocks.1") and g.consumers]
    assert sorted(g.kind for g in groups) == ["heads", "neurons"] and len({g.consumers[0].module for g in groups}) == 1
    name, clock, call = groups[0].consumers[0].module, Clock(1, 1.0, 1.0), forward("flux", net, rows=40)
    seen = []
    hook = net.get_submodule(name).register_forward_pre_hook(
        lambda _, given: seen.append(given[0].detach().flatten(0, -2).double())
    )
    with measuring(net, groups, clock, full=True) as found:
        call()
    hook.remove()
    kept = {g.name: torch.tensor([0, 2]) if g.kind == "heads" else torch.arange(0, g.units, 3) for g in groups}
    settings = Compensation(damping=1e-9)
    made, bias = refit(net, groups, kept, found.inputs, settings)[name]
    neurons = next(g for g in groups if g.kind == "neurons")
    columns = torch.cat([torch.arange(16), torch.arange(32, 48), 48 + kept[neurons.name]])  # heads of 16, then neurons
    x, layer = seen[0], net.get_submodule(name)
    wide = torch.cat([x[:, columns], torch.ones(len(x), 1)], dim=1)
    y = x @ layer.weight.double().T + layer.bias.double()
    best = ((wide @ torch.linalg.lstsq(wide, y).solution - y) ** 2).sum()
    mine = ((x @ made.double().T + bias.double() - y) ** 2).sum()
    assert mine <= best * 1.001 and not made[:, others(x.shape[1], columns)].any()

    whole = call()
    gates = {g.name: torch.zeros(g.units).index_fill(0, kept[g.name], 1.0) for g in groups}
    with gated(net, groups, gates):
        bare = call()
    apply(net, {name: (made, bias)})
    with gated(net, groups, gates):
        fitted = call()
    assert (fitted - whole).norm() < 0.8 * (bare - whole).norm()
    cut(net, groups, kept)
    torch.testing.assert_close(call(), fitted, rtol=1e-5, atol=1e-5)
