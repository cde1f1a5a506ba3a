"""Back-propagation of a reward: the kept part of the graph on a linear model, and the bundled pipeline end to end."""

import random

import pytest
import torch
from torch import nn

from flows.backprop import AlignProp, DRaFT, LastSteps, OneStep, RandomStart, ReFL
from flows.policy import DenoisePolicy
from flows.sampler import Sampler
from studio.core.pathwise import Cut, PathwiseObjective, Rise, Toward, UpTo, pathwise_loss

STEPS = 5
SIGMAS = torch.linspace(1, 0, STEPS + 1)


class Linear:
    """A backbone whose network has one weight per step: v = w_k·x; pictures are the latents."""

    latent_shape = (3, 1, 1)
    name = "linear"
    lora_targets = ()
    top = 1.0

    def __init__(self):
        self.network = nn.ParameterList([nn.Parameter(torch.tensor(0.1 * (k + 1))) for k in range(STEPS)])
        self.pipeline = None

    def encode(self, texts):
        return {"one": torch.ones(len(texts), 1)}

    def velocity(self, x, sigma, condition):
        k = int((1 - sigma[0].item()) * STEPS + 0.5)
        return self.network[k] * x

    def decode(self, latents):
        return latents

    def start(self, noise, sigma):
        return noise

    def sigmas(self, steps):
        return SIGMAS


def linear() -> DenoisePolicy:
    return DenoisePolicy(Linear(), Sampler(steps=STEPS))


def by_hand(policy, first: int) -> list[float | None]:
    """d(mean of the pictures)/d(w_k), for k from `first` on, by differentiating x_N = Π(1 - h·w_k)·x_0."""
    x = policy.render(["a", "b"], [1, 2], Cut(STEPS - 1))[0].detach()
    h, w = 1 / STEPS, [p.item() for p in policy.model]
    return [0.0 if k < first else x.mean().item() * -h / (1 - h * w[k]) for k in range(STEPS)]


@pytest.mark.parametrize("first", range(STEPS))
def test_the_kept_steps_have_the_gradient_of_the_whole_and_the_others_none(first):
    policy = linear()
    policy.render(["a", "b"], [1, 2], Cut(first))[0].mean().backward()
    got = [0.0 if p.grad is None else p.grad.item() for p in policy.model]
    assert got == pytest.approx(by_hand(policy, first), abs=1e-7)


def test_pictures_do_not_depend_on_where_the_graph_begins():
    policy = linear()
    whole = policy.images(["a", "b"], [1, 2], steps=STEPS)
    for first in range(STEPS):
        torch.testing.assert_close(policy.render(["a", "b"], [1, 2], Cut(first))[0], whole)


def test_a_predicted_picture_is_one_straight_step():
    policy = linear()
    (picture,) = policy.render(["a"], [1], Cut(2, predict=True))
    picture.mean().backward()
    with torch.no_grad():
        x = policy.render(["a"], [1], Cut(0))[0] / torch.stack([1 - w / STEPS for w in policy.model]).prod()  # the start
        at = x * (1 - 0.1 / STEPS) * (1 - 0.2 / STEPS)
        expected = at - 0.6 * 0.3 * at  # σ = .6, w = .3
    torch.testing.assert_close(picture.detach(), expected)
    assert [p.grad is not None for p in policy.model] == [False, False, True, False, False]


def test_renoised_pictures_differ_and_share_the_level():
    policy = linear()
    first, second, third = policy.render(["a"], [1], Cut(STEPS - 1, renoise=2))
    assert not torch.equal(second, third) and second.requires_grad
    level, w = 1 / STEPS, 0.5
    noise = (second / (1 - level * w) - (1 - level) * first.detach()) / level  # undo the step, then the noising
    assert noise.abs().max() < 5  # a standard normal draw again


def draws(truncation, count=200):
    return [truncation(50, random.Random(i)) for i in range(count)]


def test_published_truncations():
    assert LastSteps(3)(50, random.Random(0)) == Cut(47) and LastSteps(9)(4, random.Random(0)) == Cut(0)
    assert DRaFT(k=1, renoise=2).objective().truncation(50, random.Random(0)) == Cut(49, renoise=2)
    starts = [cut.start for cut in draws(AlignProp().objective().truncation)]
    assert 40.5 < sum(starts) / len(starts) < 43.5 and max(starts) <= 49 and len(set(starts)) > 10
    uniform = [cut.start for cut in draws(RandomStart("uniform", 0, 0))]
    assert min(uniform) < 5 and max(uniform) == 49
    indices = {ReFL().objective().truncation(40, random.Random(i)).start for i in range(400)}
    assert indices == set(range(30, 40))
    assert OneStep(0.5, 1.0)(8, random.Random(1)).predict


def test_reward_losses_by_hand():
    reward = torch.tensor([1.0, 3.0])
    assert Rise(2.0)(reward).tolist() == [-2.0, -6.0]
    assert UpTo(2.0, 0.5)(reward).tolist() == [0.5, 0.0]
    assert Toward(10.0, 0.1)(reward).tolist() == pytest.approx([0.9, 0.7])


def test_parts_add_up_and_a_missing_row_adds_nothing():
    objective = PathwiseObjective(LastSteps(1), Rise())
    reward = torch.tensor([1.0, 2.0, torch.nan, 4.0], requires_grad=True)
    present = torch.tensor([True, True, False, True])
    whole, _ = pathwise_loss(objective, reward, present, 4)
    parts = [pathwise_loss(objective, reward[s], present[s], 4)[0] for s in (slice(0, 2), slice(2, 4))]
    assert whole.item() == pytest.approx(-7 / 4) == sum(p.item() for p in parts)
    whole.backward()
    assert reward.grad.tolist() == [-0.25, -0.25, 0.0, -0.25]
