"""Every algorithm of the family through the real loop on the bundled pipeline: it runs, resumes and moves what it should."""

import pytest
import torch
from test_train import fresh, tiny

from flows.load import Model
from flows.recipe import Match, Points
from studio.behavior import Behavior
from studio.errors import NeedsError
from studio.run import RunView, request
from studio.settings import Lag
from studio.train import train
from studio.types import Prompts

MATCH = "policy={name: match, model: {id: shapes, train: lora, text_length: 1}, sampler: {steps: 4, eval_steps: 4, points: 2}}"
CLIP = "rewards={clip: {weight: 1.0}}"
RUNS = {
    "nft": ("algorithm=nft", MATCH, "train.behavior={rate: 0.1, limit: 0.5}"),
    "awm": ("algorithm={name: awm, kl: 0.01}", MATCH),
    "flow_dppo": ("algorithm=flow_dppo",),
    "ddpo": ("algorithm={name: ddpo, least: 2}", "policy.sampler.kernel=ddim", "policy.sampler.level=1.0"),
    "draft": ("algorithm={name: draft, k: 2, renoise: 1}", CLIP, "policy.model.train=lora"),
    "alignprop": ("algorithm=alignprop", CLIP),
    "refl": ("algorithm=refl", CLIP),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_runs_and_resumes_bit_for_bit(tmp_path, name):
    recipe = tiny(*RUNS[name], "watch.every=2", "train.gradient_accumulation_steps=2", steps=2)
    assert train(recipe, fresh(recipe, tmp_path, "whole")) == "finished"
    run = fresh(recipe, tmp_path, "parted")
    train(recipe, run, report=lambda step, _: request(run.folder, "stop") if step == 1 else None)
    assert train(recipe, type(run).resume(run.folder)) == "finished"
    whole, parted = (
        torch.load(RunView.open(tmp_path / name).checkpoint() / "state.pt", weights_only=True) for name in ("whole", "parted")
    )
    assert all(torch.equal(a, b) for a, b in zip(whole["trainable"], parted["trainable"], strict=True))
    records = RunView.open(tmp_path / "whole").metrics().records
    assert all(record["loss/grad_norm"] > 0 for record in records[1:])


def test_pathwise_needs_a_reward_with_gradients():
    with pytest.raises(NeedsError, match="recipe.rewards.scene: expected a differentiable reward for algorithm 'draft'"):
        tiny("algorithm=draft").check()


def test_matching_is_refused_on_a_policy_of_steps_and_back():
    with pytest.raises(NeedsError, match="'nft' needs"):
        tiny("algorithm=nft").check()
    with pytest.raises(NeedsError, match="'grpo_guard' needs"):
        tiny(MATCH).check()


@pytest.fixture(scope="module")
def matching():
    return Match(Model(id="shapes", train="full", text_length=1, device="cpu"), Points(steps=4, points=3)).build(0)


def draw(policy, micro=None):
    prompts = Prompts(["a red circle", "two blue squares"], ["a", "b"], [{}, {}])
    return policy.sample(prompts, group=torch.tensor([0, 1]), seeds=[5, 6], step=0, micro=micro)


def test_points_lie_between_the_sample_and_the_noise(matching):
    """x = (1-σ)x₀ + σe and u = e - x₀ give x - σu = x₀, the same latents at every point, which decode to the sample."""
    rollout = draw(matching)
    sigma = rollout.old.sigma[..., None, None, None]
    clean = rollout.trace.x - sigma * rollout.old.target
    torch.testing.assert_close(clean, clean[:, :1].expand_as(clean), atol=1e-5, rtol=0)
    torch.testing.assert_close(matching.backbone.decode(clean[:, 0]), rollout.samples, atol=1e-4, rtol=0)
    for row in rollout.old.sigma:
        assert len(set(row.tolist())) == 3 and set(row.tolist()) <= set(matching.grid(4)[:-1].tolist())


def test_the_first_replay_says_what_was_recorded(matching):
    rollout = draw(matching, micro=1)
    with torch.no_grad():
        new = matching.evaluate(rollout)
    torch.testing.assert_close(new.fit, rollout.old.fit, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(new.velocity, rollout.old.velocity, atol=1e-5, rtol=0)


def test_images_of_a_rollout_are_those_of_evaluation(matching):
    """No SDE: the same seeds give the pictures that evaluation draws."""
    rollout = draw(matching)
    images = matching.images(["a red circle", "two blue squares"], [5, 6], steps=4)
    torch.testing.assert_close(rollout.samples, images, atol=1e-4, rtol=0)


class OneNumber:
    def __init__(self):
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def trainable(self):
        return [self.weight]


def test_sampling_weights_follow_by_the_published_rule():
    """d = min(rate·max(n - start, 0), limit); copy ← d·copy + (1-d)·trained."""
    policy = OneNumber()
    behavior = Behavior(policy, Lag(rate=0.25, limit=0.5, start=1))
    expected, seen = 1.0, []
    for n in range(1, 6):
        with torch.no_grad():
            policy.weight.fill_(n + 1.0)
        behavior.step()
        d = min(0.25 * max(n - 1, 0), 0.5)
        expected = d * expected + (1 - d) * (n + 1.0)
        with behavior.applied():
            seen.append((policy.weight.item(), expected))
        assert policy.weight.item() == n + 1.0
    assert [a for a, _ in seen] == pytest.approx([b for _, b in seen]) and seen[-1][0] < 6.0


def test_without_a_lag_the_trained_weights_sample():
    policy = OneNumber()
    behavior = Behavior(policy, Lag())
    with behavior.applied(), torch.no_grad():
        policy.weight.fill_(3.0)
    assert policy.weight.item() == 3.0
