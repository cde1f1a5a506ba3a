"""GRPO-Guard and its family by hand and by theory: image-flow-rl.md, b2, b4, c3, c6; house-style.md, check 7."""

import pytest
import torch
from toys import batch

from flows.dance_grpo import DanceGRPO
from flows.flow_grpo import FlowGRPO
from flows.guard import GATES, GRPOGuard, regulated_ratio
from flows.mix_grpo import MixGRPO, squared_log_ratio
from flows.regularizer import FORMS, exact, flow_grpo
from flows.schedule import static_grid
from flows.sde import KERNELS, cps_logp, gaussian_logp
from studio.core import Clip, GroupRelative, Objective, assign_credit, decision_ratio, policy_loss
from studio.types import Credit, Evaluation

MEAN = torch.tensor([0.1, 0.2, -0.3, 0.4], dtype=torch.float64)
NOISE = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)
MOVE = torch.tensor([1e-3, -2e-3, 5e-4, 0.0], dtype=torch.float64)
NOISY = {"flow_sde": 0.7, "dance_sde": 0.3, "cps": 0.8, "ddim": 0.7}


def one_step(move, std=0.4, dt=0.1, logp=gaussian_logp, dtype=torch.float64):
    """A rollout of one row and one decision, and the new policy's word on it; the new mean requires a gradient."""
    mean, noise = MEAN.to(dtype)[None], NOISE.to(dtype)[None]
    width = torch.tensor([std], dtype=dtype)
    new_mean = (mean + move.to(dtype)).requires_grad_()
    x_next = mean + std * noise
    step = torch.full((1, 1), dt)
    old = Evaluation(logp=logp(x_next, mean, width)[None], mean=mean[None], std=width[None], noise=noise[None], dt=step)
    new = Evaluation(logp=logp(x_next, new_mean, width)[None], mean=new_mean[None], std=width[None], noise=noise[None])
    return new_mean, new, batch([[1]], old=old)


def gradient(objective, move, advantage, dtype=torch.float64):
    """d loss / d mean of the new policy for one decision of weight 1."""
    mean, new, rollout = one_step(move, dtype=dtype)
    given = torch.full((1, 1), float(advantage))
    gate = torch.ones_like(given) if objective.gate is None else objective.gate(rollout, given)
    loss, stats = policy_loss(objective, new, rollout, Credit(given, gate, torch.ones(1, 1)))
    return torch.autograd.grad(loss, mean)[0].flatten(), stats


def test_regulated_ratio_by_hand():
    _, new, rollout = one_step(MOVE)
    plain = (new.logp - rollout.old.logp).item()  # mean(ε·δ)/s - mean(δ²)/(2s²) = 2.1875e-3 - 5.25e-6/4/0.32
    assert plain == pytest.approx(0.00218339844, abs=1e-10)
    bias = MOVE.square().mean().item() / (2 * 0.4**2)
    assert bias == pytest.approx(4.1015625e-6, abs=1e-12)
    assert plain + bias == pytest.approx(0.0021875, abs=1e-10)
    regulated = regulated_ratio(new, rollout).item()
    assert regulated == pytest.approx(8.75e-4, abs=1e-12)
    assert 0.4 * (plain + bias) == pytest.approx(regulated, abs=1e-12)  # the published form


def test_regulated_ratio_by_hand_for_cps():
    _, new, rollout = one_step(MOVE, logp=cps_logp)
    plain = (new.logp - rollout.old.logp).item()
    assert plain == pytest.approx(6.986875e-4, abs=1e-10)
    assert plain + MOVE.square().mean().item() == pytest.approx(7.0e-4, abs=1e-10)
    assert (plain + MOVE.square().mean().item()) / (2 * 0.4) == pytest.approx(regulated_ratio(new, rollout).item(), abs=1e-10)
    assert regulated_ratio(new, rollout).item() == pytest.approx(8.75e-4, abs=1e-12)


def test_regulated_ratio_does_not_change_with_the_std():
    said = [one_step(MOVE, std=std)[1:] for std in (0.1, 0.4, 2.0)]
    regulated = [regulated_ratio(new, rollout).item() for new, rollout in said]
    plain = [(new.logp - rollout.old.logp).item() for new, rollout in said]
    assert regulated == [regulated[0]] * 3
    assert plain[0] > 3 * plain[1] > 9 * plain[2] > 0


def test_regulated_ratio_has_no_shift():
    # E = 2, s = 0.5, δ = (0.1, 0.1): E[plain] = -0.01/(2·0.25) = -0.02; standard errors 0.001 and 0.0005
    noise = torch.randn(20_000, 1, 2, generator=torch.Generator().manual_seed(0))
    mean, std = torch.zeros(20_000, 1, 2), torch.full((20_000, 1), 0.5)
    x_next = 0.5 * noise

    def logp(at):
        return gaussian_logp(x_next[:, 0], at[:, 0], std[:, 0])[:, None]

    new = Evaluation(logp=logp(mean + 0.1), mean=mean + 0.1)
    rollout = batch([[1]] * 20_000, old=Evaluation(logp=logp(mean), mean=mean, std=std, noise=noise), group=[0] * 20_000)
    assert decision_ratio(new, rollout).mean().item() == pytest.approx(-0.02, abs=0.004)
    assert regulated_ratio(new, rollout).mean().item() == pytest.approx(0, abs=0.002)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_guard_gradient_and_clip_by_hand(dtype):
    # δ = (1e-6, -2e-6, 5e-7, 0): ℓ = 8.75e-7; gate 1/0.1, so d loss / d mean = -A·10·ε/4
    small, full = MOVE / 1000, torch.tensor([-1.25, 2.5, -5.0, -0.625], dtype=dtype)
    wide, narrow = GRPOGuard(clip=2e-6).objective(), GRPOGuard(clip=1e-7).objective()
    free, stats = gradient(wide, small, 1.0, dtype)
    torch.testing.assert_close(free, full, atol=1e-5, rtol=0)
    assert stats["ratio/above"] == 0
    held, stats = gradient(narrow, small, 1.0, dtype)
    assert (held == 0).all() and stats["ratio/above"] == 1
    for objective in (wide, narrow):
        torch.testing.assert_close(gradient(objective, small, -1.0, dtype)[0], -full, atol=1e-5, rtol=0)


def test_guard_clips_the_other_side_too():
    small = -MOVE / 1000  # ℓ = -8.75e-7
    held, stats = gradient(GRPOGuard(clip=1e-7).objective(), small, -1.0)
    assert (held == 0).all() and stats["ratio/below"] == 1
    assert (gradient(GRPOGuard(clip=1e-7).objective(), small, 1.0)[0] != 0).any()


@pytest.mark.parametrize("clip", [1e-7, 1e-6, 2e-6, 1e-4])
@pytest.mark.parametrize("side", [1, -1], ids=["above", "below"])
def test_clip_decides_in_the_log_domain(clip, side):
    # 0.1 % inside and outside the bound; in float32, 1 ± 0.999e-6 and 1 ± 1.001e-6 are the same ratio
    for part, held in ((0.999, False), (1.001, True)):
        log_ratio = torch.log1p(torch.tensor([[side * part * clip]], dtype=torch.float64)).float().requires_grad_()
        advantage = torch.tensor([[float(side)]])
        gain = Clip(clip, clip)(log_ratio, advantage, torch.ones(1, 1, dtype=torch.bool))
        assert (torch.autograd.grad(gain.sum(), log_ratio)[0].item() == 0) == held


@pytest.mark.parametrize("kernel", NOISY)
def test_inverse_jacobian_gives_every_step_the_same_gradient(kernel):
    norms, by_dt = step_gradients(kernel, "inv_jacobian"), step_gradients(kernel, "inv_dt")
    torch.testing.assert_close(norms, norms[:1].expand_as(norms), atol=0, rtol=1e-4)
    spread = (by_dt.max() / by_dt.min()).item()
    if kernel == "flow_sde":
        assert spread == pytest.approx(1.245, abs=1e-3)  # |dμ/dv|/h: 1 at the first step, 1 + a²/2 after it
    plain = step_gradients(kernel, "none")
    assert plain.max() / plain.min() > 1.5


def step_gradients(kernel, reweight):
    """Norm of d loss / d velocity at the nine trained steps of SD3.5's grid, for equal noise."""
    grid = static_grid(10).double()
    t, after = grid[:9], grid[1:10]
    draws = torch.Generator().manual_seed(1)
    x, v, noise = (torch.randn(1, 16, generator=draws, dtype=torch.float64).expand(9, -1) for _ in range(3))
    v = v.clone().requires_grad_()
    step = KERNELS[kernel](x, v, t, after, torch.full_like(t, NOISY[kernel]))
    fields = {"mean": step.mean, "std": step.std, "noise": noise, "dt": t - after, "jacobian": step.jacobian}
    new = Evaluation(**{name: value[None] for name, value in fields.items()})
    old = Evaluation(**{name: value.detach()[None] for name, value in fields.items()})
    rollout = batch([[1] * 9], old=old)
    objective = Objective(lambda rollout: torch.ones(1, 9), gate=GATES[reweight], ratio=regulated_ratio)
    loss, _ = policy_loss(objective, new, rollout, assign_credit(objective, rollout))
    return torch.autograd.grad(loss, v)[0].norm(dim=1)


def test_group_advantages_by_hand():
    reward = torch.tensor([1, 0, 0.5, 0.5, 0.2, 0.2, 0.2, 0.6])
    rollout = batch([[1]] * 8, reward, group=[0] * 4 + [1] * 4)
    overall = [1.6897, -1.6897, 0, 0, -0.3379, -0.3379, -0.3379, 1.0138]  # std of all eight 0.295804, ddof 0
    grouped = [1.4138, -1.4138, 0, 0, -0.5770, -0.5770, -0.5770, 1.7311]
    for advantage, expected in (
        (GroupRelative(scale="global"), overall),
        (GroupRelative(scale="group"), grouped),
        (FlowGRPO().objective().advantage, overall),
        (GRPOGuard().objective().advantage, overall),
        (GRPOGuard(scale="group").objective().advantage, grouped),
    ):
        torch.testing.assert_close(advantage(rollout)[:, 0], torch.tensor(expected), atol=6e-5, rtol=0)


def test_dance_and_mix_use_the_unbiased_group_std():
    # [1, 0, 0.5, 0.5]: variance 0.5/3 over n - 1, std 0.408248, A = ±1.224745
    rollout = batch([[1]] * 4, torch.tensor([1, 0, 0.5, 0.5]))
    for algorithm in (DanceGRPO(), MixGRPO()):
        advantage = algorithm.objective().advantage(rollout)[:, 0]
        torch.testing.assert_close(advantage, torch.tensor([1.224745, -1.224745, 0, 0]), atol=1e-5, rtol=0)


def test_advantages_are_clipped_at_five():
    reward = torch.zeros(64)
    reward[0] = 1  # (1 - 1/64) / 0.124 = 7.9
    rollout = batch([[1]] * 64, reward, group=[0] * 64)
    for algorithm in (FlowGRPO(scale="group"), GRPOGuard(scale="group"), DanceGRPO(), MixGRPO()):
        assert algorithm.objective().advantage(rollout)[0, 0].item() == 5


def test_kl_forms_by_hand():
    # t = 0.6, t' = 0.5, a = 0.7; velocities 0.3 apart: J = 0.1·1.245, s² = 0.49·1.5·0.1: (0.03735)²/(2·0.0735)
    x, v = torch.randn(1, 4), torch.randn(1, 4)
    t, after, level = torch.tensor([0.6]), torch.tensor([0.5]), torch.tensor([0.7])
    said = []
    for velocity in (v, v + 0.3):
        step = KERNELS["flow_sde"](x, velocity, t, after, level)
        said.append(Evaluation(mean=step.mean[None], std=step.std[None], dt=(t - after)[None], velocity=velocity[None]))
    rollout = batch([[1]], old=said[0], ref=said[0])
    for form, expected in (("exact", 0.009489949), ("flow_grpo", 0.000948995), ("velocity", 0.09)):
        assert FORMS[form](said[1], rollout, torch.zeros(1, 1)).item() == pytest.approx(expected, rel=1e-4)
    assert exact.needs >= {"ref"} and flow_grpo.needs >= {"dt"}


def test_mix_penalty_by_hand():
    assert squared_log_ratio(Evaluation(), batch([[1]]), torch.tensor([[0.2]])).item() == pytest.approx(0.02)


def test_defaults_name_what_they_need():
    assert FlowGRPO(kl=0).objective().needs == {"logp"}
    assert GRPOGuard().objective().needs == {"mean", "noise", "dt"}
    assert GRPOGuard(reweight="inv_jacobian").objective().needs == {"mean", "noise", "jacobian"}
    assert "ref" in FlowGRPO().objective().needs and "ref" in GRPOGuard(kl=0.1).objective().needs
