"""Statistics per denoising step, with numbers by hand."""

import math

import pytest
import torch

from flows.guard import GRPOGuard
from flows.sde import step_logp
from studio.stepwise import step_metrics, step_sums, watch_gradient
from studio.types import Credit, Evaluation, Prompts, Rollout

MOVED = torch.tensor([[[0.1, -0.3], [0.0, 0.2]], [[0.1, 0.1], [0.4, 0.0]]])  # Δμ [B=2, T=2, E=2]
NOISE = torch.tensor([[[1.0, 2.0], [0.5, 1.0]], [[-1.0, 0.0], [1.0, 1.0]]])
STD = torch.tensor([[0.5, 0.2], [0.5, 0.2]])


def case(weight=((0.25, 0.25), (0.25, 0.25)), clip=0.05):
    old_mean = torch.zeros(2, 2, 2)
    x_next = old_mean + STD[..., None] * NOISE
    logp = step_logp("flow_sde")

    def said(mean, noise):
        value = logp(x_next.flatten(0, 1), mean.flatten(0, 1), STD.flatten()).unflatten(0, (2, 2))
        return Evaluation(mean=mean, std=STD, noise=noise, logp=value, dt=STD, jacobian=torch.tensor([[2.0, 3.0]] * 2))

    weight = torch.tensor(weight)
    rollout = Rollout(
        Prompts(["a"] * 2, ["a"] * 2, [{}] * 2), None, None, weight > 0, torch.zeros(2, dtype=torch.long), said(old_mean, NOISE)
    )
    new = said((old_mean + MOVED).requires_grad_(), NOISE)
    credit = Credit(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.ones(2, 2), weight)
    return GRPOGuard(clip=clip, reweight="none").objective(), new, rollout, credit


def test_the_shift_of_the_raw_ratio_is_predicted_from_how_far_the_mean_moved():
    metrics = step_metrics(step_sums(*case()))
    # step 0: rows mean Δμ² = (0.01+0.09)/2 = 0.05 and 0.01, s = 0.5: -(0.05+0.01)/2 / (2·0.25) = -0.06
    assert metrics["ratio/predicted@0"] == pytest.approx(-0.06, rel=1e-6)
    # step 1: 0.02 and 0.08, s = 0.2: -(0.02+0.08)/2 / (2·0.04) = -0.625
    assert metrics["ratio/predicted@1"] == pytest.approx(-0.625, rel=1e-6)
    assert metrics["ratio/moved@0"] == pytest.approx((0.2 + 0.1) / 2, rel=1e-6)
    assert metrics["ratio/moved@1"] == pytest.approx((0.1 + 0.2) / 2, rel=1e-6)


def test_the_raw_log_ratio_is_the_prediction_plus_the_noise_term():
    metrics = step_metrics(step_sums(*case()))
    # log r = mean(Δμ·ε)/s - mean(Δμ²)/2s²; step 0: mean(Δμ·ε) = (0.1-0.6)/2 = -0.25 and -0.05, step 1: 0.1 and 0.2
    assert metrics["ratio/raw_log@0"] == pytest.approx((-0.25 - 0.05) / 2 / 0.5 - 0.06, rel=1e-4)
    assert metrics["ratio/raw_log@1"] == pytest.approx((0.1 + 0.2) / 2 / 0.2 - 0.625, rel=1e-4)


def test_shift_and_spread_of_the_objectives_own_ratio():
    metrics = step_metrics(step_sums(*case()))
    shifts = [math.expm1(0.1), math.expm1(0.2)]  # step 1, GRPO-Guard's ratio mean(Δμ·ε)
    assert metrics["ratio/shift@1"] == pytest.approx(sum(shifts) / 2, rel=1e-5)
    assert metrics["ratio/std@1"] == pytest.approx((shifts[1] - shifts[0]) / 2, rel=1e-5)  # population std of two numbers


def test_clip_shares():
    metrics = step_metrics(step_sums(*case()))  # row 0: A = 1, ℓ = -0.25, 0.1; row 1: A = -1, ℓ = -0.05, 0.2; clip 0.05
    assert metrics["ratio/above@1"] == 0.5  # row 0 only: row 1 has a negative advantage, it is clipped below
    assert metrics["ratio/above@0"] == 0.0
    assert metrics["ratio/below@1"] == 0.0
    assert step_metrics(step_sums(*case(clip=0.04)))["ratio/below@0"] == 0.5  # exp(-0.05) = 0.951 < 0.96


def test_dead_rows_do_not_count():
    metrics = step_metrics(step_sums(*case(weight=((0.5, 0.0), (0.5, 0.0)))))
    assert metrics["ratio/predicted@0"] == pytest.approx(-0.06, rel=1e-6)
    assert metrics["ratio/predicted@1"] == 0.0
    one = step_metrics(step_sums(*case(weight=((0.5, 0.5), (0.0, 0.0)))))
    assert one["ratio/predicted@0"] == pytest.approx(-0.05 / 0.5, rel=1e-6)


def test_the_gradient_reaches_the_velocity_through_the_jacobian():
    objective, new, rollout, credit = case()
    root = torch.zeros(2, 2, 2, requires_grad=True)
    new = Evaluation(mean=MOVED + root, std=STD, noise=NOISE, logp=new.logp, jacobian=new.jacobian)
    watch_gradient(new)
    (new.mean * torch.tensor([[[1.0, 2.0], [0.0, 1.0]], [[2.0, 0.0], [2.0, 2.0]]])).sum().backward()
    sums = step_sums(objective, new, rollout, credit)
    metrics = step_metrics(sums)
    # step 0: |g|² = 1+4+4 = 9, |dμ/dv| = 2 -> 3·2;  step 1: 1+4+4 = 9, |dμ/dv| = 3 -> 3·3
    assert metrics["ratio/grad_norm@0"] == pytest.approx(6.0)
    assert metrics["ratio/grad_norm@1"] == pytest.approx(9.0)


def test_without_a_gradient_there_is_no_norm():
    assert not [name for name in step_metrics(step_sums(*case())) if "grad_norm" in name]


def test_sums_of_parts_are_the_sums_of_the_whole():
    objective, new, rollout, credit = case()
    whole = step_sums(objective, new, rollout, credit)
    parts = [step_sums(objective, new.at(cut), rollout.at(cut), credit.at(cut)) for cut in (slice(0, 1), slice(1, 2))]
    for name, value in whole.items():
        assert torch.allclose(parts[0][name] + parts[1][name], value, rtol=1e-12), name
