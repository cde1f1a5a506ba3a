"""The loop on the bundled model: it stops when asked, and refuses what would train on nonsense."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import rewards
import studio.train as loop
import studio.update as updating
from studio.config import dump
from studio.core import assign_credit
from studio.dist import Processes
from studio.errors import ConfigError, DivergedError, RewardError
from studio.recipe import load_recipe
from studio.rollout import sample
from studio.run import Run, RunView, request
from studio.state import final_weights
from studio.types import Prompts, Scores

SMALL = (
    "train.groups_per_step=2",
    "train.group_size=4",
    "watch.prompts=4",
    "watch.every=2",
    "watch.samples=2",
    "policy.sampler.steps=4",
    "policy.sampler.eval_steps=4",
    "policy.sampler.window.size=2",
    "held_out={}",
)


def tiny(*overrides: str, steps: int = 2):
    """The demo's recipe at a size for tests."""
    return load_recipe("shapes/grpo-guard", [*SMALL, f"train.steps={steps}", *overrides])[0]


def fresh(recipe, root: Path, name: str = "run") -> Run:
    return Run.create(root, name, dump(recipe), total_steps=recipe.train.steps, command=["test"])


def states(folder: Path) -> list[str]:
    return [event["state"] for event in RunView.open(folder).events() if event["kind"] == "state"]


@dataclass(frozen=True)
class Throwaway:
    """A reward of brightness; the classes below break it in one way each."""

    name = "throwaway"
    reads = "image"
    differentiable = False
    range = (0.0, 1.0)
    license = "Apache-2.0"
    model_id = None

    def __call__(self, samples, prompts: Prompts):
        return samples.flatten(1).mean(1)


class Raises(Throwaway):
    def __call__(self, samples, prompts):
        raise OSError("server is gone")


class NotANumber(Throwaway):
    def __call__(self, samples, prompts):
        return torch.where(torch.arange(len(prompts)) == 1, torch.nan, super().__call__(samples, prompts))


class Missing(Throwaway):
    """Rows whose position in the order of calls is in `rows` have no score, and a value that would show anywhere."""

    rows: frozenset = frozenset()

    def __init__(self) -> None:
        object.__setattr__(self, "calls", [])

    def __call__(self, samples, prompts):
        at = torch.arange(len(prompts)) + sum(self.calls)
        self.calls.append(len(prompts))
        present = torch.tensor([int(row) not in self.rows for row in at])
        value = super().__call__(samples, prompts)
        return Scores(torch.where(present, value, 1e6), present, {"shown": value})


@pytest.fixture
def reward(monkeypatch):
    """Registers a class of this file as the reward `throwaway` and gives the override that selects it."""

    def select(cls: type) -> str:
        monkeypatch.setitem(rewards.REWARDS, "throwaway", f"{cls.__module__}:{cls.__name__}")
        return "rewards={throwaway: 1.0}"

    return select


@pytest.fixture
def built(monkeypatch):
    """The parts that `train` builds, with the weights they started from."""
    seen: list = []

    def build(recipe, *around):
        parts = build_parts(recipe, *around)
        seen[:] = [parts, [p.detach().clone() for p in parts.policy.trainable()]]
        return parts

    build_parts = loop.build_parts
    monkeypatch.setattr(loop, "build_parts", build)
    return seen


def unchanged(built) -> bool:
    parts, before = built
    return all(torch.equal(p, q) for p, q in zip(parts.policy.trainable(), before, strict=True))


def test_a_run_leaves_metrics_samples_and_a_checkpoint(tmp_path, built):
    recipe = tiny()
    assert loop.train(recipe, fresh(recipe, tmp_path)) == "finished"
    view = RunView.open(tmp_path / "run")
    assert view.status["state"] == "finished" and view.status["step"] == 2 and view.status["exit_code"] == 0
    assert [record["step"] for record in view.metrics().records] == [0, 1, 2]
    assert view.sample_steps() == [0, 2] and len(view.samples(2)) == 2
    groups = view.groups(2)
    assert [(r["group"], r["sample_id"]) for r in groups] == [(g, f"s0{k}") for g in (0, 1) for k in range(4)]
    assert all(r["file"].name == f"g00{r['group']}-{r['sample_id']}.png" and r["file"].is_file() for r in groups)
    reward = torch.tensor([r["reward"] for r in groups], dtype=torch.float64).reshape(2, 4)
    by_hand = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, correction=0, keepdim=True) + 1e-4)
    assert [r["advantage"] for r in groups] == pytest.approx(by_hand.flatten().tolist(), abs=2e-3)
    assert view.checkpoints() == [2]
    assert (final_weights(view.folder) / "transformer").exists() or any(final_weights(view.folder).iterdir())
    last = view.metrics().records[-1]
    assert {"reward/mean", "reward/scene", "reward/eval.scene", "loss/grad_norm", "ratio/shift@0", "ratio/shift@1"} <= last.keys()
    assert not unchanged(built)


@pytest.mark.parametrize("how", ["control", "SIGTERM"])
def test_a_request_stops_with_a_checkpoint(tmp_path, how):
    recipe = tiny(steps=50)
    run = fresh(recipe, tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def ask(step, values):
        if step == 1:
            request(run.folder, "stop") if how == "control" else os.kill(os.getpid(), signal.SIGTERM)

    assert loop.train(recipe, run, report=ask) == "stopped"
    view = RunView.open(run.folder)
    assert (view.status["state"], view.status["step"], view.status["reason"]) == ("stopped", 1, "requested")
    assert view.checkpoints() == [1]
    assert states(run.folder) == ["starting", "running", "stopped"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_save_and_sample_on_request_do_not_stop(tmp_path):
    recipe = tiny("watch.every=100", "train.checkpoints_total_limit=5", steps=2)
    run = fresh(recipe, tmp_path)

    def ask(step, values):
        for what in ("save", "sample") if step == 1 else ():
            request(run.folder, what)

    assert loop.train(recipe, run, report=ask) == "finished"
    view = RunView.open(run.folder)
    assert view.checkpoints() == [1, 2] and view.sample_steps() == [0, 1] and view.group_steps() == [1]


def test_a_loss_that_is_not_a_number_changes_no_weight(tmp_path, monkeypatch, built):
    honest = updating.policy_loss

    def broken(*given, **told):
        loss, stats = honest(*given, **told)
        return loss * torch.nan, stats | {"loss/total": loss.detach() * torch.nan}

    monkeypatch.setattr(updating, "policy_loss", broken)
    recipe = tiny()
    with pytest.raises(DivergedError, match="finite loss"):
        loop.train(recipe, fresh(recipe, tmp_path))
    assert unchanged(built)
    assert RunView.open(tmp_path / "run").checkpoints() == []


def test_a_gradient_that_is_not_a_number_changes_no_weight(tmp_path, monkeypatch, built):
    honest = updating.policy_loss

    def broken(objective, new, rollout, credit, **told):
        loss, stats = honest(objective, new, rollout, credit, **told)
        return loss + (new.mean.sum() * 0).sqrt() * 0, stats  # finite, but d sqrt(0) is not

    monkeypatch.setattr(updating, "policy_loss", broken)
    recipe = tiny()
    with pytest.raises(DivergedError, match="gradient norm nan"):
        loop.train(recipe, fresh(recipe, tmp_path))
    assert unchanged(built)


@pytest.mark.parametrize(("cls", "words"), [(Raises, "server is gone"), (NotANumber, "finite scores, got nan")])
def test_a_broken_reward_stops_the_run(tmp_path, reward, cls, words):
    recipe = tiny(reward(cls))
    with pytest.raises(RewardError, match=words):
        loop.train(recipe, fresh(recipe, tmp_path))


def rollout_of(recipe):
    """Rollout and credit of the first iteration."""
    parts = loop.build_parts(recipe)
    try:
        batch, _ = sample(recipe, parts, Processes(), 0)
    finally:
        parts.rewards.close()
    return batch.rollout, assign_credit(parts.objective, batch.everyone)


@pytest.mark.parametrize("pieces", [1, 4, 16])  # 16: a part of which every row is missing
def test_a_missing_row_counts_nowhere(monkeypatch, reward, pieces):
    monkeypatch.setattr(Missing, "rows", frozenset({5}))
    size = ("train.groups_per_step=2", "train.group_size=8", f"train.gradient_accumulation_steps={pieces}")
    rollout, credit = rollout_of(tiny(reward(Missing), *size))
    there = torch.arange(16) != 5
    assert rollout.present.equal(there)
    assert credit.weight[5].eq(0).all() and (credit.weight[there] > 0).all()
    assert credit.weight.sum().item() == pytest.approx(1, abs=1e-6)
    scores = rollout.parts["throwaway"]
    assert scores[5].isnan() and rollout.reward[5] == 0
    kept = [0, 1, 2, 3, 4, 6, 7]  # the seven that are left of group 0, by hand
    by_hand = (scores[kept] - scores[kept].mean()) / scores[kept].std(correction=0)
    assert torch.allclose(credit.advantage[kept, 0], by_hand, atol=1e-2)
    assert credit.advantage[kept, 0].sum().abs() < 1e-4
    assert rollout.parts["shown"].isnan().sum() == 1


@pytest.mark.parametrize(("rows", "stops"), [({0}, False), ({0, 9}, True)])  # 1 of 16 = 6 %, 2 of 16 = 12.5 %
def test_many_missing_rows_stop_the_run(monkeypatch, reward, rows, stops):
    monkeypatch.setattr(Missing, "rows", frozenset(rows))
    recipe = tiny(reward(Missing), "train.group_size=8")
    if stops:
        with pytest.raises(RewardError, match="at most 10% missing"):
            rollout_of(recipe)
    else:
        rollout_of(recipe)


def test_the_first_replay_must_reproduce_the_rollout(tmp_path, monkeypatch, built):
    from flows.policy import DenoisePolicy

    honest = DenoisePolicy.velocity
    monkeypatch.setattr(
        DenoisePolicy,
        "velocity",
        lambda self, texts: lambda x, t: honest(self, texts)(x, t) * (1 + 1e-3 * torch.is_grad_enabled()),
    )
    recipe = tiny()
    with pytest.raises(DivergedError, match="first replay"):
        loop.train(recipe, fresh(recipe, tmp_path))
    assert unchanged(built)
    loose = tiny("train.ratio_tolerance=1.0")
    assert loop.train(loose, fresh(loose, tmp_path, "loose")) == "finished"


def test_the_reference_is_stored_and_evaluated_when_needed(tmp_path):
    recipe = tiny("algorithm={name: grpo_guard, clip: 1.0e-5, kl: 0.01}")
    assert loop.train(recipe, fresh(recipe, tmp_path)) == "finished"
    first, second = RunView.open(tmp_path / "run").metrics().records[1:]
    named = {name for name in first if name.startswith("loss/")} - {
        "loss/total",
        "loss/surrogate",
        "loss/grad_norm",
        "loss/learning_rate",
    }
    assert named, sorted(first)
    assert all(first[name] == pytest.approx(0, abs=1e-9) for name in named)  # before the first update nothing has moved
    assert any(second[name] > 1e-9 for name in named)


def test_the_averaged_weights_are_saved_and_the_trained_ones_kept(tmp_path, built):
    recipe = tiny("train.ema=0.9", steps=3)
    loop.train(recipe, fresh(recipe, tmp_path))
    parts, before = built
    trained = [p.detach().clone() for p in parts.policy.trainable()]
    parts.policy.load(final_weights(tmp_path / "run"))
    # decay min((1+n)/(10+n), 0.9), n = 0, 1, 2 or offset by one: the average lies strictly between start and end
    saved = list(parts.policy.trainable())
    far = [i for i, (a, b) in enumerate(zip(before, trained, strict=True)) if not torch.equal(a, b)]
    assert any(not torch.equal(saved[i], trained[i]) and not torch.equal(saved[i], before[i]) for i in far)
    for p, shadow in zip(saved, parts.average.model.shadow_params, strict=True):
        assert torch.equal(p, shadow)


def test_minibatches_are_steps_of_full_length_on_their_share(tmp_path):
    """Two minibatches of whole groups: each step is that of an iteration whose rollout is this half alone."""
    size = ("train.groups_per_step=2", "train.group_size=4", "train.ema=0", "train.max_grad_norm=1e9")
    recipe = tiny(*size, "train.minibatches=2")
    parts, processes = loop.build_parts(recipe), Processes()
    batch, _ = sample(recipe, parts, processes, 0)
    start = [p.detach().clone() for p in parts.policy.trainable()]
    values = updating.update(recipe, parts, processes, batch, parts.policy.model, step=0)
    moved = [p.detach().clone() for p in parts.policy.trainable()]

    other = loop.build_parts(recipe)
    credit = assign_credit(other.objective, batch.everyone)
    for half in (slice(0, 4), slice(4, 8)):
        alone = batch.rollout.at(half)
        own = assign_credit(other.objective, alone)  # advantages of the group, weights that add up to 1 over it
        assert torch.allclose(own.weight, 2 * credit.at(half).weight)
        loss, _ = updating.policy_loss(other.objective, other.policy.evaluate(alone), alone, own)
        loss.backward()
        other.optimizer.step()
        other.optimizer.zero_grad(set_to_none=True)
    parts.rewards.close(), other.rewards.close()
    assert not all(torch.equal(a, b) for a, b in zip(start, moved, strict=True))
    for a, b in zip(moved, other.policy.trainable(), strict=True):
        torch.testing.assert_close(a, b.detach(), atol=1e-7, rtol=0)
    assert values["ratio/largest"] > 0  # the second half meets a policy that has moved


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("train.minibatches=3",), "divides the 16 rows of a process, got 3"),
        (("train.minibatches=4", "train.gradient_accumulation_steps=8"), None),
        (("train.minibatches=8", "train.gradient_accumulation_steps=2"), None),
        (("train.minibatches=2", "algorithm=draft", "rewards={clip: 1.0}"), "takes one step on the whole batch, got 2"),
    ],
)
def test_minibatches_that_do_not_divide(overrides, words):
    recipe = tiny("train.groups_per_step=2", "train.group_size=8", *overrides)
    if words is None:
        recipe.check()
        return
    with pytest.raises(ConfigError, match=words):
        recipe.check()
