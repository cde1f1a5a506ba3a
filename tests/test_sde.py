"""One step of every family by hand and by theory: image-flow-rl.md, a1 to a4 and a8."""

import math

import pytest
import torch

from flows.denoise import RowNoise, denoise
from flows.schedule import dynamic_grid, even_grid, static_grid
from flows.sde import KERNELS, cps_logp, gaussian_logp, stable_level, step_logp

X, V = torch.tensor([[1.0, -0.5]]), torch.tensor([[0.2, 0.4]])
T, T_NEXT = torch.tensor([0.8]), torch.tensor([0.6])
# level, std, mean, jacobian of  x = (1, -0.5), v = (0.2, 0.4), t = 0.8, t' = 0.6
BY_HAND = {
    "ode": (0.0, 0.0, [0.96, -0.58], 0.2),
    "flow_sde": (0.7, 0.626099034, [0.7052, -0.4771], 0.249),
    "dance_sde": (0.3, 0.134164079, [0.9483, -0.575275], 0.20225),
    "cps": (0.8, 0.570633910, [0.528826604, -0.405872283], 0.282917961),
    "ddim": (0.7, 0.389350421, [0.810775947, -0.519736440], None),
}
NOISY = {"flow_sde": 0.7, "dance_sde": 0.3, "cps": 0.8, "ddim": 0.7}


def take(kernel, t, t_next, level, x=X, v=V):
    return KERNELS[kernel](x, v, *(torch.full((len(x),), float(n), dtype=x.dtype) for n in (t, t_next, level)))


@pytest.mark.parametrize("kernel", BY_HAND)
def test_step_by_hand(kernel):
    level, std, mean, jacobian = BY_HAND[kernel]
    step = KERNELS[kernel](X, V, T, T_NEXT, torch.tensor([level]))
    torch.testing.assert_close(step.mean, torch.tensor([mean]), atol=1e-6, rtol=0)
    assert step.std.item() == pytest.approx(std, abs=1e-6)
    if jacobian is not None:
        assert step.jacobian.item() == pytest.approx(jacobian, abs=1e-6)


def test_logp_by_hand():
    # flow_sde: 2s² = 0.784, squares (0.1948², 0.0771²): -0.0280/0.784 - ln 0.6261 - 0.9189385 = -0.4786838
    step = take("flow_sde", 0.8, 0.6, 0.7)
    x_next = torch.tensor([[0.9, -0.4]])
    assert gaussian_logp(x_next, step.mean, step.std).item() == pytest.approx(-0.478683810, abs=1e-6)
    # cps: -(0.1948² + 0.0771²)/2, whatever the std
    assert cps_logp(x_next, step.mean, step.std).item() == pytest.approx(-0.02194573, abs=1e-6)


def test_logp_is_the_normal_density_as_a_mean():
    x, mean, std = torch.randn(3, 2, 5), torch.randn(3, 2, 5), torch.tensor([0.3, 1.0, 2.0])
    expected = torch.distributions.Normal(mean, std[:, None, None]).log_prob(x).mean((1, 2))
    torch.testing.assert_close(gaussian_logp(x, mean, std), expected)
    assert step_logp("cps") is cps_logp and step_logp("ddim") is step_logp("flow_sde") is gaussian_logp


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("t", "t_next"), [(1.0, 0.9), (0.8, 0.6), (0.3, 0.0)])
def test_level_zero_is_the_euler_step(kernel, t, t_next):
    step = take(kernel, t, t_next, 0.0)
    torch.testing.assert_close(step.mean, X - (t - t_next) * V, atol=1e-6, rtol=0)
    torch.testing.assert_close(step.jacobian, torch.tensor([t - t_next]), atol=1e-6, rtol=0)
    assert step.std.item() == 0


@pytest.mark.parametrize("kernel", NOISY)
@pytest.mark.parametrize(("t", "t_next"), [(1.0, 0.9), (0.8, 0.6), (0.3, 0.05), (0.05, 0.0)])
def test_jacobian_is_the_derivative_of_the_mean(kernel, t, t_next):
    x, v, change = X.double(), V.double(), 1e-4
    before, after = (take(kernel, t, t_next, NOISY[kernel], x, v + d) for d in (-change, change))
    slope = ((after.mean - before.mean) / (2 * change)).abs()
    torch.testing.assert_close(slope, before.jacobian.expand_as(slope), atol=1e-9, rtol=1e-6)


def test_flow_sde_sensitivity_is_constant_but_at_the_first_step():
    grid = static_grid(10)
    ratio = [take("flow_sde", t, n, 0.7).jacobian.item() / (t - n) for t, n in zip(grid[:9], grid[1:10], strict=True)]
    assert ratio[0] == pytest.approx(1, abs=1e-5)
    assert ratio[1:] == pytest.approx([1.245] * 8, abs=1e-4)  # 1 + 0.7²/2


def test_flow_sde_stds_on_the_sd3_grid():
    grid = static_grid(10)
    std = [take("flow_sde", t, n, 0.7).std.item() for t, n in zip(grid[:-1], grid[1:], strict=True)]
    expected = [0.7, 0.74296, 0.53615, 0.44590, 0.39179, 0.35280, 0.31907, 0.28201, 0.22536, 0.00628]
    assert std == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("grid", [static_grid(4), even_grid(7), dynamic_grid(6, 1024)], ids=["sd3", "even", "flux"])
def test_first_flow_sde_std_is_the_level_on_any_grid(grid):
    assert take("flow_sde", grid[0], grid[1], 0.9).std.item() == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize("kernel", ["cps", "ddim"])
@pytest.mark.parametrize("level", [0.2, 0.8, 1.0])
def test_recombined_steps_keep_the_total_noise_level(kernel, level):
    for t, t_next in ((1.0, 0.9), (0.8, 0.6), (0.3, 0.05)):
        # x = t, v = 1 predicts data 0 and noise 1, so the mean is the share of the predicted noise that is kept
        step = take(kernel, t, t_next, level, torch.tensor([[t]]), torch.ones(1, 1))
        assert math.hypot(step.mean.item(), step.std.item()) == pytest.approx(t_next, abs=1e-6)
        # x = 1 - t, v = -1 predicts data 1 and noise 0: data keeps its coefficient
        step = take(kernel, t, t_next, level, torch.tensor([[1 - t]]), -torch.ones(1, 1))
        assert step.mean.item() == pytest.approx(1 - t_next, abs=1e-6)


@pytest.mark.parametrize(("kernel", "level"), [("flow_sde", 0.7), ("flow_sde", 1.1), ("dance_sde", 0.3), ("dance_sde", 0.8)])
def test_sde_ends_where_the_ode_ends(kernel, level):
    """With the exact velocity of N(m, c²):  v = -m + (t - (1-t)c²)/((1-t)²c² + t²)·(x - (1-t)m)."""
    m, c, rows, steps = 0.7, 0.5, 20_000, 300

    def velocity(x, sigma):
        t = sigma[:, None]
        return (t - (1 - t) * c**2) / ((1 - t) ** 2 * c**2 + t**2) * (x - (1 - t) * m) - m

    draws = torch.Generator().manual_seed(3)
    start = torch.randn(rows, 1, generator=draws)
    grid = even_grid(steps, shift=2.0)
    flow = denoise(velocity, start, grid)
    noisy = denoise(
        velocity,
        start,
        grid,
        levels=[level] * (steps - 1) + [0.0],
        kernel=KERNELS[kernel],
        noise=lambda: torch.randn(rows, 1, generator=draws),
    )
    for end in (flow, noisy):  # 4 standard errors: c/√n = 0.0035 and c/√2n = 0.0025, plus 0.004 for the finite steps
        assert end.mean().item() == pytest.approx(m, abs=4 * 0.0035 + 0.004)
        assert end.std().item() == pytest.approx(c, abs=4 * 0.0025 + 0.004)
    assert torch.corrcoef(torch.cat([flow, noisy], 1).T)[0, 1] < 0.99  # the noise did move the rows


def test_stable_level_of_the_sd3_grid():
    grid = static_grid(10)
    level = stable_level(grid, list(range(9)))
    # the first step has h = 1 - t', so the bound there is √2; step 1: √(2·0.086651/0.046780) = 1.9247
    assert level == pytest.approx(math.sqrt(2), abs=1e-5)
    assert stable_level(grid, [1]) == pytest.approx(1.9247, abs=1e-3)


def test_row_noise_depends_on_its_seed_alone():
    many, one = RowNoise([5, 6, 7], (2, 3)), RowNoise([6], (2, 3))
    for _ in range(3):
        assert torch.equal(many()[1], one()[0])
    assert not torch.equal(RowNoise([5], (4,))(), RowNoise([6], (4,))())
