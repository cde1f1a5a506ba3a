"""The one sampling loop: house-style.md, check 8, and what stays deterministic outside a window."""

import pytest
import torch
from torch import nn

from flows.denoise import RowNoise, denoise
from flows.recompute import recomputed
from flows.schedule import dynamic_grid, even_grid, static_grid
from flows.sde import KERNELS, ode

GRIDS = {"sd3": static_grid(7), "even": even_grid(5), "flux": dynamic_grid(6, 1024), "part": torch.tensor([0.8, 0.3, 0.1])}
SEEDS = [11, 12, 13]


def tanh_velocity(x, sigma):
    return torch.tanh(2 * x) + sigma[:, None]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_constant_velocity_at_level_zero(grid, kernel):
    x, v = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, -2.0, 0.5, 0.0])
    got = denoise(lambda x, sigma: v.expand_as(x), x, grid, kernel=KERNELS[kernel])
    torch.testing.assert_close(got, x + v * (grid[-1] - grid[0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kernel", ["flow_sde", "dance_sde", "cps", "ddim"])
def test_steps_outside_the_window_are_the_ode_to_the_bit(kernel):
    taken, window = [], [2, 3]
    start = RowNoise(SEEDS, (4,))()
    grid = static_grid(8)
    levels = [0.7 if i in window else 0.0 for i in range(8)]
    noise = RowNoise(SEEDS, (4,))
    denoise(tanh_velocity, start, grid, levels=levels, kernel=KERNELS[kernel], noise=noise, record=taken.append)
    plain = []
    denoise(tanh_velocity, start, grid, record=plain.append)
    for step, still in zip(taken, plain, strict=True):
        exact = ode(step.x, tanh_velocity(step.x, step.sigma), step.sigma, step.sigma_next, step.level).mean
        assert (step.noise is not None) == (step.index in window)
        assert torch.equal(step.x_next, exact) == (step.index not in window)
        assert torch.equal(step.x_next, still.x_next) == (step.index < 2)
        if step.noise is not None:
            assert torch.equal(step.x_next, step.step.mean + step.step.std[:, None] * step.noise)


def test_record_is_called_once_a_step_in_order():
    taken = []
    grid = static_grid(6)
    end = denoise(tanh_velocity, torch.randn(2, 3), grid, record=taken.append)
    assert [step.index for step in taken] == list(range(6))
    assert [step.sigma[0].item() for step in taken] == grid[:-1].tolist()
    assert all(torch.equal(a.x_next, b.x) for a, b in zip(taken, taken[1:], strict=False))
    assert torch.equal(taken[-1].x_next, end)


@pytest.mark.parametrize("named", [False, True], ids=["found by torch", "named"])
@pytest.mark.parametrize("levels", [0.0, [0.5, 0.5, 0.5, 0.0]], ids=["ode", "sde"])
def test_forgetting_activations_leaves_the_gradients(levels, named):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    start, calls, results = torch.randn(3, 4), [], []
    for remember in (True, False):

        def velocity(x, sigma, remember=remember):
            calls.append(remember)
            return network(x)

        x = start.clone().requires_grad_()
        through = list(network.parameters()) if named else []
        noise = RowNoise(SEEDS, (4,))
        end = denoise(velocity, x, static_grid(4), levels=levels, noise=noise, remember=remember, through=through)
        results.append((end, *torch.autograd.grad(end.square().sum(), [x, *network.parameters()])))
    for kept, again in zip(*results, strict=True):
        assert torch.equal(kept, again)
    assert calls.count(True) == 4 and calls.count(False) == 4 + 3  # the last step is kept: its turn comes first


def test_a_recompute_reaches_what_lies_before_the_tensors_it_names():
    """Gates that are functions of logits: the gradient goes through x and the gates into both, and to nothing that is not named."""
    logit, start, other = (torch.randn(4, generator=torch.Generator().manual_seed(k)).requires_grad_() for k in range(3))
    gate, x = logit.sigmoid(), start * 2
    made = recomputed(lambda x, sigma: gate * x.sin() * other + sigma, x, torch.tensor(0.5), [gate])
    assert made.grad_fn is not None
    made.square().sum().backward()
    found = (logit.grad.clone(), start.grad.clone())
    logit.grad = start.grad = None
    assert other.grad is None
    (logit.sigmoid() * (start * 2).sin() * other.detach() + 0.5).square().sum().backward()
    assert all(torch.allclose(a, b) for a, b in zip(found, (logit.grad, start.grad), strict=True))


def test_a_recompute_is_as_precise_as_the_forward():
    layer, seen = nn.Linear(4, 4), []

    def velocity(x, sigma):
        made = layer(x)
        seen.append((made.dtype, torch.is_grad_enabled()))
        return made

    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = recomputed(velocity, torch.randn(2, 4), torch.zeros(2), list(layer.parameters()))
    made.float().sum().backward()  # outside of autocast
    assert seen == [(torch.bfloat16, False), (torch.bfloat16, True)] and layer.weight.grad.abs().sum() > 0


def test_the_result_is_float32_and_does_not_depend_on_the_batch():
    start, grid = RowNoise(SEEDS, (4,))(), static_grid(5)
    whole = denoise(tanh_velocity, start, grid, levels=0.5, noise=RowNoise(SEEDS, (4,)))
    alone = denoise(tanh_velocity, start[1:2], grid, levels=0.5, noise=RowNoise(SEEDS[1:2], (4,)))
    torch.testing.assert_close(whole[1:2], alone, atol=1e-6, rtol=0)
    taken = []
    end = denoise(lambda x, s: x.bfloat16(), start.bfloat16(), grid, record=taken.append)
    assert {step.x.dtype for step in taken} == {end.dtype} == {torch.float32}


def test_a_noisy_step_without_a_source_says_which():
    with pytest.raises(ValueError, match="step 1 has level 0.5, expected a noise source"):
        denoise(tanh_velocity, torch.zeros(1, 2), static_grid(3), levels=[0.0, 0.5, 0.0])
