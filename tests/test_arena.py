"""The loop in environments: values after cut and ended episodes, scales, the same bits, resume, and two processes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from ranks import train_two
from test_resume import assert_same
from test_train import fresh

from flows.control.arena import Arena
from flows.control.environment import Space, Step
from flows.control.normalize import Moments, Normalizer
from studio.errors import ConfigError, NeedsError
from studio.parts import build_parts
from studio.recipe import load_recipe
from studio.replay import apart, shuffled
from studio.run import Run, RunView, request
from studio.settings import Acting
from studio.train import train
from studio.types import Credit

SMALL = ("acting={environments: 8, steps: 6}", "watch={every: 3, episodes: 20}", "train.checkpointing_steps=1")


def tiny(name: str = "policyflow", *overrides: str, steps: int = 4):
    return load_recipe(f"control/multigoal-{name}", [*SMALL, f"train.steps={steps}", *overrides])[0]


@dataclass(frozen=True)
class Counting:
    """Observations count the steps of an episode; copy 0 ends its task after 2 actions, copy 1 is cut after 3, copy 2 goes on."""

    arena: ClassVar[str] = "flows.control.arena:Arena"

    def build(self, count: int, first: int, seed: int) -> Any:
        return Counts(count)


class Counts:
    def __init__(self, count: int) -> None:
        self.count, self.space, self.at = count, Space(1, 1, (-1.0,), (1.0,)), torch.zeros(count)

    def reset(self):
        self.at = torch.zeros(self.count)
        return self.at[:, None].clone()

    def step(self, action):
        reached = self.at + 1
        row = torch.arange(self.count)
        dead, cut = (row == 0) & (reached == 2), (row == 1) & (reached == 3)
        self.at = torch.where(dead | cut, 0.0, reached)
        return Step(self.at[:, None].clone(), reached, dead, cut, reached[:, None], {"even": reached % 2 == 0})

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]

    def close(self):
        pass


class Tenfold:
    """Values are ten times the observation."""

    space = Space(1, 1, (-1.0,), (1.0,))

    def begin(self, step):
        pass

    def draws(self, step, steps, rows):
        return {"noise": torch.zeros(steps, rows, 1)}

    def act(self, observation, draw):
        return draw["noise"], {"action": draw["noise"]}

    def value(self, observation):
        return 10 * observation[..., 0]

    def trace(self, record):
        from flows.control.trace import ActionTrace
        from studio.types import Evaluation

        return ActionTrace(record, Evaluation(logp=torch.zeros(record["action"].shape[:-1])))


def test_what_is_reached_has_a_value_unless_the_task_ended():
    """Four actions. Observations 0 1 0 1 / 0 1 2 0 / 0 1 2 3; reached 1 2 1 2 / 1 2 3 1 / 1 2 3 4."""
    arena = Arena(Counting(), Acting(environments=3, steps=4), seed=0)
    rollout = arena.stretch(Tenfold(), 0)
    assert rollout.old.value.tolist() == [[0, 10, 0, 10], [0, 10, 20, 0], [0, 10, 20, 30]]
    assert rollout.after.tolist() == [[10, 0, 10, 0], [10, 20, 30, 10], [10, 20, 30, 40]]
    assert rollout.ends.tolist() == [[False, True] * 2, [False, False, True, False], [False] * 4]
    assert rollout.reward.tolist() == [[1, 2, 1, 2], [1, 2, 3, 1], [1, 2, 3, 4]]
    assert rollout.parts["return"][:2].tolist() == [3, 6] and rollout.parts["length"][:2].tolist() == [2, 3]
    assert rollout.parts["return"].isnan().tolist() == [False, False, True] and rollout.parts["even"][:2].tolist() == [1, 0]
    assert arena.stretch(Tenfold(), 1).parts["return"][1].item() == 6  # an episode that two stretches share


def test_scales_are_those_of_everything_seen_in_any_batches():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([1.0, 5.0, 0.1]) + 7
    moments = Moments(3)
    for part in x.split([10, 1, 60, 29]):
        moments.add(part, lambda t: t)
    assert torch.allclose(moments.mean, x.mean(0)) and torch.allclose(moments.std, x.std(0, correction=0))
    normalizer = Normalizer(Acting(observations=True, clip=2.0), 3, 5)
    assert torch.equal(normalizer.observation(x), x)  # nothing seen yet
    normalizer.learn(x[None], lambda t: t)
    scaled = normalizer.observation(x)
    assert scaled.abs().max() == 2 and scaled.mean().abs() < 0.05


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return():
    """γ = 0.5, r = 1 1 1 with an end after the second: R = 1, 1.5, 1."""
    normalizer = Normalizer(Acting(rewards=True, gamma=0.5, reward_scale=2.0), 1, 1)
    ends = torch.tensor([[False, True, False]])
    scaled = normalizer.reward(torch.ones(1, 3), ends, lambda t: t)
    assert scaled[0].tolist() == pytest.approx([2 / torch.tensor([2.0, 3, 2]).std(correction=0).item()] * 3, rel=1e-5)
    assert normalizer.returns.item() == 2.0


def test_actions_apart_keep_their_credit_and_their_weights():
    parts = build_parts(tiny())
    rollout = parts.env.stretch(parts.policy, 0)
    shape = rollout.mask.shape
    number = torch.arange(48.0).reshape(shape)
    flat, credit = apart(rollout, Credit(number, number + 1, number / number.sum(), number + 2))
    assert flat.mask.shape == (48, 1) and credit.weight.sum().item() == pytest.approx(1)
    assert torch.equal(credit.advantage[:, 0], torch.arange(48.0)) and torch.equal(credit.target[:, 0], torch.arange(48.0) + 2)
    assert torch.equal(flat.trace.record["z"][13, 0], rollout.trace.record["z"][2, 1])
    assert torch.equal(flat.old.logp[13], rollout.old.logp[2, 1:2]) and flat.trace.record["index"][13].item() == 13


def test_every_action_is_in_one_minibatch_of_one_process():
    whole = [rows for ((rows, _),) in shuffled(12, 4, seed=3)]
    assert sorted(torch.cat(whole).tolist()) == list(range(12)) and torch.cat(whole).tolist() != list(range(12))
    assert [len(rows) for rows in whole] == [3] * 4
    first, second = ([rows for ((rows, _),) in shuffled(6, 4, seed=3, rank=rank, world=2)] for rank in (0, 1))
    for together, a, b in zip(whole, first, second, strict=True):
        assert sorted(together.tolist()) == sorted(a.tolist() + (b + 6).tolist())


def outcome(folder: Path):
    view = RunView.open(folder)
    records = [{k: v for k, v in r.items() if k != "t" and not k.startswith("time/")} for r in view.metrics().records]
    return records, torch.load(view.checkpoint() / "state.pt", weights_only=True)


@pytest.fixture(scope="module", params=["policyflow", "ppo"])
def whole(request, tmp_path_factory):
    recipe = tiny(
        request.param,
        "acting.observations=true",
        "acting.rewards=true",
        "policy.fidelity=2" if request.param == "policyflow" else "seed=0",
    )
    root = tmp_path_factory.mktemp("whole")
    assert train(recipe, fresh(recipe, root)) == "finished"
    return recipe, root / "run"


def test_a_run_says_how_it_went(whole):
    recipe, folder = whole
    records = outcome(folder)[0]
    updates, watched = [r for r in records if "loss/total" in r], [r for r in records if "reward/eval.return" in r]
    assert [r["step"] for r in updates] == [1, 2, 3, 4] and [r["step"] for r in watched] == [0, 3]
    assert all(r["kl/moved"] > 0 and "reward/mean" in r and r["loss/learning_rate"] > 0 for r in updates)
    assert all(0 <= r["reward/eval.success"] <= 1 and 0 <= r["reward/eval.covered"] <= 6 for r in watched)
    if recipe.policy.name == "policyflow":
        assert [r["step"] for r in updates if "ratio/fidelity" in r] == [2, 4]
        assert all(-1 <= r["ratio/fidelity"] <= 1 for r in updates if "ratio/fidelity" in r)
    names = {record["prompt"] for record in RunView.open(folder).samples(3)}
    assert names == {"paths", "first actions"} | ({"velocity"} if recipe.policy.name == "policyflow" else set())


def test_the_same_seed_gives_the_same_bits(tmp_path, whole):
    recipe, folder = whole
    torch.manual_seed(99)
    train(recipe, fresh(recipe, tmp_path))
    assert_same(outcome(tmp_path / "run"), outcome(folder))


def test_stopped_and_resumed_equals_uninterrupted(tmp_path, whole):
    recipe, folder = whole
    run = fresh(recipe, tmp_path)
    assert train(recipe, run, report=lambda step, _: request(run.folder, "stop") if step == 2 else None) == "stopped"
    torch.manual_seed(123)
    assert train(recipe, Run.resume(run.folder)) == "finished"
    assert_same(outcome(run.folder), outcome(folder))


def test_another_seed_gives_other_numbers(tmp_path, whole):
    recipe, folder = whole
    other = replace(recipe, seed=recipe.seed + 1)
    train(other, fresh(other, tmp_path))
    assert outcome(tmp_path / "run")[0][1] != outcome(folder)[0][1]


EVEN = ("acting.observations=true", "acting.rewards=true", "train.adam_epsilon=1e-3", "train.minibatches=3")


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    train_two("test_arena", {"run": "shared.tiny('policyflow', *shared.EVEN)"}, tmp_path)
    recipe = tiny("policyflow", *EVEN)
    train(recipe, fresh(recipe, tmp_path, "alone"))
    (mine, own), (alone, other) = outcome(tmp_path / "run"), outcome(tmp_path / "alone")
    for a, b in zip(own["trainable"], other["trainable"], strict=True):
        assert (a - b).abs().max() <= 2e-6
    for a, b in zip(mine, alone, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["algorithm=gspo"], ConfigError, "recipe.algorithm: expected one with a critic, got 'gspo'"),
        (["algorithm=fpo"], NeedsError, "needs fit"),
        (["rewards={jpeg_size: 1.0}"], ConfigError, "expected no prompts and no rewards beside it"),
        (["policy=denoise", "algorithm=ppo"], NeedsError, "needs"),
        (["train.minibatches=100"], ConfigError, "expected at most 48, the actions of an iteration"),
        (["env=multigoals"], ConfigError, "did you mean 'multigoal'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(overrides, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        tiny("policyflow", *overrides).check()


def test_a_policy_that_acts_needs_an_environment():
    with pytest.raises(ConfigError, match="recipe.env: expected an environment for policy 'gaussian', got none"):
        load_recipe("control/multigoal-ppo", ["env=null", "prompts=shapes", "rewards={scene: 1.0}"])[0].check()


def test_many_environments_are_told_to_keep_their_minibatch():
    recipe = tiny("ppo", "acting={environments: 16384, steps: 24}", "train.minibatches=4")
    assert any("set acting.minibatch: 16384" in warning for warning in recipe.check())
    assert not tiny("ppo", "acting={environments: 16384, steps: 24, minibatch: 16384}").check()
