"""Sigma grids by hand and against the stock scheduler: image-flow-rl.md, a5."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from flows.schedule import dynamic_grid, dynamic_mu, even_grid, scheduler_grid, static_grid, static_shift

SD3 = {
    4: [1, 0.857692, 0.602151, 0.008929, 0],
    10: [1, 0.960129, 0.913349, 0.857692, 0.790368, 0.707278, 0.602151, 0.464876, 0.278049, 0.008929, 0],
}


@pytest.mark.parametrize("steps", SD3)
def test_sd3_grid_by_hand(steps):
    torch.testing.assert_close(static_grid(steps), torch.tensor(SD3[steps]).float(), atol=1e-6, rtol=0)


def test_sd3_grid_of_forty_steps():
    grid = static_grid(40)
    assert len(grid) == 41
    torch.testing.assert_close(grid[:3], torch.tensor([1, 0.991331, 0.982356]), atol=1e-6, rtol=0)
    torch.testing.assert_close(grid[-3:], torch.tensor([0.081046, 0.008929, 0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 10, 28, 40])
def test_sd3_grid_is_the_schedulers(steps):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(static_grid(steps), scheduler.sigmas, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (1024, 0.63), (2025, 0.799440), (4096, 1.15)])
def test_flux_shift_by_hand(tokens, mu):
    assert dynamic_mu(tokens) == pytest.approx(mu, abs=1e-6)


def test_flux_grid_by_hand():
    expected = torch.tensor([1, 0.903736, 0.789705, 0.652489, 0.484218, 0.273003, 0])
    torch.testing.assert_close(dynamic_grid(6, 1024), expected, atol=1e-6, rtol=0)


def test_even_grid_by_hand():
    # f(u) = 3u / (1 + 2u): f(3/4) = 2.25/2.5, f(1/2) = 1.5/2, f(1/4) = 0.75/1.5
    torch.testing.assert_close(even_grid(4), torch.tensor([1, 0.9, 0.75, 0.5, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(even_grid(4, shift=1.0), torch.linspace(1, 0, 5), atol=1e-7, rtol=0)


def test_shift_keeps_the_ends_and_its_inverse_undoes_it():
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    shifted = static_shift(u, 3.0)
    assert shifted[0] == 0 and shifted[-1] == 1 and (shifted[1:-1] > u[1:-1]).all()
    torch.testing.assert_close(static_shift(shifted, 1 / 3), u)


@pytest.mark.parametrize("grid", [static_grid(10), even_grid(10), dynamic_grid(10, 1024)], ids=["sd3", "even", "flux"])
def test_grids_fall_from_one_to_zero(grid):
    assert grid.dtype == torch.float32 and len(grid) == 11
    assert grid[0] == 1 and grid[-1] == 0 and (grid[:-1] > grid[1:]).all()


def test_a_dynamic_scheduler_is_asked_with_its_own_constants():
    """mu is linear between the scheduler's two points; at the upper one it is max_shift, and the grid is e^mu/(e^mu + 1/u - 1)."""
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.0, max_shift=1.0, base_image_seq_len=100, max_image_seq_len=200
    )
    before = scheduler.sigmas.clone()
    even = torch.linspace(1.0, 0.25, 4, dtype=torch.float64)
    for tokens, mu in ((100, 0.0), (150, 0.5), (200, 1.0)):
        scale = torch.tensor(mu, dtype=torch.float64).exp()
        expected = torch.cat([scale / (scale + 1 / even - 1), even.new_zeros(1)]).float()
        torch.testing.assert_close(scheduler_grid(scheduler, 4, tokens, sigmas=even.tolist()), expected, atol=1e-6, rtol=0)
    assert torch.equal(scheduler.sigmas, before)


def test_a_static_scheduler_needs_no_token_count():
    torch.testing.assert_close(
        scheduler_grid(FlowMatchEulerDiscreteScheduler(shift=3.0), 10, 0), static_grid(10), atol=1e-6, rtol=0
    )
