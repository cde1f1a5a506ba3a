"""Learning masks: the gradient through the sampler, the noise of an update, the budget, and runs of the one loop."""

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import train_two
from test_resume import assert_same
from test_train import fresh

import pruning.learn
from pruning.budget import Budget
from pruning.compensate import apply, refit
from pruning.ecodiff import BudgetPenalty, MaskObjective, NormPenalty
from pruning.gates import HardConcrete, straight_through
from pruning.launch import load_prune_recipe
from pruning.learn import learn
from pruning.policy import GatedPolicy, gates_of, load_logits
from pruning.rounds import GONE
from pruning.sites import Group
from studio.dist import Processes
from studio.errors import MissingError
from studio.parts import build_parts
from studio.run import Run, RunView, request
from studio.state import final_weights
from studio.train import train

SMALL = (
    "sampler.steps=3",
    "sampler.eval_steps=2",
    "sites={include: 'blocks.[12].(attn|ff)$'}",
    "calibration={rows: 5, batch: 2}",
    "learn={steps: 4, rows: 4, evaluate_every: 2, checkpointing_steps: 1}",
    "target={params: 0.95}",
    "rewards={scene: 1.0}",
    "evaluate=2",
)


def masks(*overrides: str, name: str = "shapes/end-to-end"):
    """The mask training of a bundled recipe at a size for tests."""
    return load_prune_recipe(name, [*SMALL, *overrides])[0].training()


def gradient(recipe, step: int, monkeypatch) -> tuple[list[torch.Tensor], dict, GatedPolicy]:
    """Of one update with respect to the logits, as `learn` hands it to the optimizer; its metrics."""
    parts, found = build_parts(recipe), []

    def optimize(recipe, parts, loss):
        found.extend(p.grad.clone() for p in parts.policy.trainable())
        return 0.0

    with monkeypatch.context() as patch:
        patch.setattr(pruning.learn, "optimize", optimize)
        _, values = learn(recipe, parts, Processes(), step, None)
    return found, values, parts.policy


def plain(recipe, step: int, *, settled: bool) -> list[torch.Tensor]:
    """The same by back-propagation through the whole remembered trajectory."""
    parts = build_parts(recipe)
    policy, objective = parts.policy, parts.objective
    rows = policy.rows(step, recipe.train.groups_per_step)
    own = policy.pairs.take(rows)
    target, logits = policy.target(rows), policy.logits()
    if settled:
        soft = {name: torch.sigmoid(value) for name, value in logits.items()}
        share = objective.penalty.now(policy.budget.share, step / recipe.train.steps)
        gates = {name: straight_through(hard, soft[name]) for name, hard in policy.hard(share).items()}
    else:
        draws = policy.draws(step)
        opens = {name: objective.gate.open_sharp(value) for name, value in logits.items()}
        gates = {name: objective.gate.sample(value, draws[name]) for name, value in logits.items()}
    with policy.under(gates):
        made = policy.dense.latents(own.prompts.text, own.seeds, remember=True)
    error = (((made - target) ** 2).flatten(1).mean(1) / (target**2).flatten(1).mean(1)).mean()
    if settled:  # the gradient over gates, without what would change the cost of the mask
        slopes = torch.autograd.grad(error, list(gates.values()), retain_graph=True)
        along = policy.budget.along(dict(zip(gates, slopes, strict=True)))
        torch.autograd.backward(list(gates.values()), list(along.values()))
    else:
        gap = policy.budget.expected(opens) - objective.penalty.now(policy.budget.share, step / recipe.train.steps)
        (error + 0.5 * objective.penalty.rate * gap**2).backward()
    return [p.grad for p in policy.trainable()]


def test_a_gradient_along_the_budget_changes_no_cost(policy):
    """(g - c·(g·c)/(c·c))·c = 0, what is along already stays, and a gradient that is all cost vanishes."""
    budget = policy.budget
    costs = {g.name: torch.full((g.units,), budget.costs[g.name]) for g in budget.groups}
    drawn = {g.name: torch.randn(g.units, generator=torch.Generator().manual_seed(i)) for i, g in enumerate(budget.groups)}
    along = budget.along(drawn)
    assert sum((along[name] * costs[name]).sum() for name in costs).abs() <= 1e-3 * budget.whole**0.5
    for name, value in budget.along(along).items():
        assert torch.allclose(value, along[name], atol=1e-5)
    assert max(value.abs().max() / budget.costs[name] for name, value in budget.along(costs).items()) <= 1e-5


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("settled", [False, True], ids=["noisy gates", "settled gates"])
def test_the_recomputed_gradient_is_that_of_plain_back_propagation(guidance, settled, monkeypatch):
    recipe, step = masks(f"sampler.guidance={guidance}", "criterion.rounds=0"), 3 if settled else 1
    found, values, _ = gradient(recipe, step, monkeypatch)
    wanted = plain(recipe, step, settled=settled)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm() and b.norm() > 0
    assert values["prune/error"] > 0


def test_two_parts_give_the_gradient_of_one(monkeypatch):
    whole, once, _ = gradient(masks(), 1, monkeypatch)
    halves, twice, _ = gradient(masks("learn.parts=2"), 1, monkeypatch)
    for a, b in zip(halves, whole, strict=True):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max().clamp(min=1)
    assert twice["prune/error"] == pytest.approx(once["prune/error"], rel=1e-5)


def test_the_per_step_variant_matches_velocities_on_dense_latents(monkeypatch):
    recipe = masks("criterion.per_step=true", "criterion.rounds=0")
    found, _, policy = gradient(recipe, 1, monkeypatch)
    rows = policy.rows(1, 4)
    own = policy.pairs.take(rows)
    draws, family = policy.draws(1), HardConcrete(noise=0.1)
    gates = {name: family.sample(value, draws[name]) for name, value in policy.logits().items()}
    with torch.no_grad():
        taken = []
        policy.dense.latents(own.prompts.text, own.seeds, record=taken.append)
    velocity, total = policy.dense.velocity(own.prompts.text), torch.zeros(())
    for step in taken:
        with torch.no_grad():
            v = velocity(step.x, step.sigma)
        with policy.under(gates):
            made = velocity(step.x, step.sigma)
        total = total + (((made - v) ** 2).flatten(1).mean(1) / (v**2).flatten(1).mean(1)).mean() / 3
    opens = {name: family.open_sharp(value) for name, value in policy.logits().items()}
    gap = policy.budget.expected(opens) - (1 - 0.05 * 0.25 / 0.7)  # step 1 of 4, ramp 0.7
    for p in policy.trainable():
        p.grad = None
    (total + 25 * gap**2).backward()
    for a, b in zip(found, (p.grad for p in policy.trainable()), strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.fixture(scope="module")
def policy() -> GatedPolicy:
    return build_parts(masks()).policy


def test_noise_belongs_to_the_update(policy):
    again, other = policy.draws(3), policy.draws(4)
    for name, drawn in policy.draws(3).items():
        assert torch.equal(drawn, again[name]) and not torch.equal(drawn, other[name])
    first, second = list(again.values())[:2]
    assert not torch.equal(first[:4], second[:4])  # nor is it shared between modules


@pytest.mark.parametrize("pieces", [1, 4])
def test_noise_is_drawn_once_in_an_update(pieces, monkeypatch):
    asked, draws = [], GatedPolicy.draws
    monkeypatch.setattr(GatedPolicy, "draws", lambda self, step: asked.append(step) or draws(self, step))
    gradient(masks(f"learn.parts={pieces}"), 1, monkeypatch)
    assert asked == [1]


def test_every_pair_once_per_pass(policy):
    seen = [row for step in range(5) for row in policy.rows(step, 4)]  # 20 of 5 pairs: 4 passes
    passes = [seen[at : at + 5] for at in range(0, 20, 5)]
    assert all(sorted(each) == [0, 1, 2, 3, 4] for each in passes) and len({tuple(each) for each in passes}) > 1
    assert policy.rows(2, 4) == seen[8:12]
    assert sorted(policy.rows(0, 10)) == sorted([0, 1, 2, 3, 4] * 2)


def test_targets_are_those_of_the_dense_model_and_computed_once(policy):
    rows = [3, 0, 3]
    found = policy.target(rows)
    own = policy.pairs.take([0, 3])
    with torch.no_grad():
        wanted = policy.dense.latents(own.prompts.text, own.seeds)
    torch.testing.assert_close(found, wanted[[1, 0, 1]], rtol=1e-4, atol=1e-5)
    assert not torch.equal(wanted[0], wanted[1])
    assert policy.target([3])[0].equal(found[0])


def test_gates_that_are_open_change_nothing(policy):
    ones = {g.name: torch.ones(g.units) for g in policy.groups}
    own = policy.pairs.take([0, 1])
    with torch.no_grad(), policy.under(ones):
        made = policy.dense.latents(own.prompts.text, own.seeds)
    torch.testing.assert_close(made, policy.target([0, 1]), rtol=1e-5, atol=1e-5)


def test_settled_gates_are_the_mask_that_would_be_deployed(policy):
    gates, opens = gates_of(policy, HardConcrete(), 0, settled=policy.budget.share)
    kept = policy.budget.keep({name: value.detach() for name, value in policy.logits().items()})
    for name, gate in gates.items():
        assert gate.detach().nonzero().flatten().tolist() == kept[name].tolist()
        assert set(gate.unique().tolist()) <= {0.0, 1.0}
        torch.testing.assert_close(opens[name], torch.sigmoid(policy.logits()[name]))
    removed = sum((g.units - len(kept[g.name])) * g.params for g in policy.groups)
    whole = sum(p.numel() for p in policy.dense.model.parameters())
    assert 0 <= 0.05 * whole - removed < max(g.params for g in policy.groups)


def test_what_goes_in_a_round_is_refitted_for_and_stays_gone():
    """The network of a round is the dense one with refitted consumers; targets stay the dense model's; nothing comes back."""
    policy = build_parts(masks()).policy
    before = {name: value.clone() for name, value in policy.dense.model.state_dict().items()}
    wanted = policy.target([0, 1])
    policy.remove(0.97)
    kept = policy.budget.keep(policy.logits(), 0.97)
    assert {name: (value > GONE).nonzero().flatten().tolist() for name, value in policy.logits().items()} == {
        name: value.tolist() for name, value in kept.items()
    }
    whole = copy.deepcopy(policy.dense.model)
    whole.load_state_dict(before)
    refitted = refit(whole, policy.groups, kept, policy.memory.moments, policy.memory.settings)
    assert refitted and any(
        (whole.get_submodule(name).weight - weight).abs().max() > 1e-3 for name, (weight, _) in refitted.items()
    )
    apply(whole, refitted)
    now = policy.dense.model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in whole.state_dict().items())
    with policy.unpruned():
        assert all(torch.equal(policy.dense.model.state_dict()[name], value) for name, value in before.items())
    policy._targets.clear()
    assert torch.equal(policy.target([0, 1]), wanted)
    assert all(torch.equal(policy.dense.model.state_dict()[name], value) for name, value in whole.state_dict().items())
    later = policy.budget.keep(policy.logits(), 0.96)
    assert all(set(later[name].tolist()) <= set(value.tolist()) for name, value in kept.items())


@pytest.mark.parametrize(("steps", "rounds", "at"), [(80, 4, {14, 28, 42}), (80, 1, set()), (80, 0, set()), (10, 3, {2, 5})])
def test_rounds_end_after_equal_parts_of_the_fall_but_the_last(steps, rounds, at):
    objective = MaskObjective(HardConcrete(), BudgetPenalty(1.0, 0.7), rounds=rounds)
    assert {step for step in range(steps) if objective.removes(step, steps)} == at


def test_logits_come_back_from_their_file(policy, tmp_path):
    policy.save(tmp_path)
    stored = load_logits(tmp_path)
    before = {name: value.detach().clone() for name, value in policy.logits().items()}
    with torch.no_grad():
        for value in policy.logits().values():
            value.zero_()
    policy.load(tmp_path)
    for name, value in policy.logits().items():
        assert (
            value.dtype == torch.float32 and torch.equal(value.detach(), before[name]) and torch.equal(stored[name], before[name])
        )
    with pytest.raises(MissingError, match="logits.safetensors: expected the logits of a mask"):
        load_logits(tmp_path / "none")


# penalties


def test_the_published_penalty_by_hand():
    """Heads: modules of mean |λ| 2 and 4; neurons: 1. β·(3 + 1)."""
    logits = {"a": torch.tensor([1.0, -3]), "b": torch.tensor([4.0]), "c": torch.tensor([1.0, 0, 2])}
    kinds = {"a": "heads", "b": "heads", "c": "neurons"}
    value, told = NormPenalty(0.5)(logits, kinds, torch.tensor(0.9), 0.8, 0.5)
    assert value.item() == pytest.approx(2.0) and told == {}
    # σ(0.4·λ + 1) at 1, -3, 4: 0.802184, 0.450166, 0.930862; at 1, 0, 2: 0.802184, 0.731059, 0.858149
    value, _ = NormPenalty(2.0, squashed=True)(logits, kinds, torch.tensor(0.9), 0.8, 0.5)
    assert value.item() == pytest.approx(2 * ((0.626175 + 0.930862) / 2 + 0.797131), abs=1e-5)


def test_the_published_penalty_pulls_gates_to_one_half_unless_squashed():
    value = torch.tensor([-2.0, 0.5, 3.0], requires_grad=True)
    (slope,) = torch.autograd.grad(NormPenalty(3.0)({"a": value}, {"a": "heads"}, torch.tensor(1.0), 0.8, 0.0)[0], value)
    assert slope.tolist() == pytest.approx([-1, 1, 1])
    squashed = NormPenalty(3.0, squashed=True)({"a": value}, {"a": "heads"}, torch.tensor(1.0), 0.8, 0.0)[0]
    s = torch.sigmoid(0.4 * value.detach() + 1)
    torch.testing.assert_close(torch.autograd.grad(squashed, value)[0], 0.4 * s * (1 - s))


def test_the_budget_penalty_by_hand():
    """Target 0.8, reached after half of the updates: 0.9 a quarter of the way. d = 0.95 - 0.9; μ·d + ρ/2·d², then μ + ρ/100·d."""
    penalty = BudgetPenalty(rate=4.0, ramp=0.5, multiplier=0.3)
    assert [penalty.now(0.8, at) for at in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1, 0.9, 0.8, 0.8])
    assert BudgetPenalty(1.0, 0.0).now(0.8, 0.0) == pytest.approx(0.8)
    share = torch.tensor(0.95, requires_grad=True)
    value, told = penalty({}, {}, share, 0.8, 0.25)
    assert value.item() == pytest.approx(0.3 * 0.05 + 2 * 0.0025) and told == {"prune/multiplier": 0.3}
    assert torch.autograd.grad(value, share)[0].item() == pytest.approx(0.3 + 4 * 0.05)
    penalty.after(0.95, 0.8, 0.25)
    assert penalty.multiplier == pytest.approx(0.3 + 0.04 * 0.05)
    again = BudgetPenalty(4.0, 0.5)
    again.load_state_dict(penalty.state_dict())
    assert again.multiplier == penalty.multiplier


@pytest.mark.parametrize("target", [0.85, 0.6])
@pytest.mark.parametrize("worth", [0.0, 0.3], ids=["worthless units", "units of equal worth"])
def test_the_budget_drives_what_is_expected_to_remain_to_the_target(target, worth):
    """Whatever a closed gate costs elsewhere: in the limit the multiplier pays for it and the constraint holds."""
    groups = [Group("a", "neurons", 40, 1), Group("b", "neurons", 60, 1)]
    budget = Budget(groups, {"a": 1.0, "b": 0.5}, 80.0, target)
    gate, penalty = HardConcrete(noise=0.1), BudgetPenalty(rate=50.0, ramp=0.4)
    logits = {g.name: torch.full((g.units,), 2.0, requires_grad=True) for g in groups}
    optimizer, steps = torch.optim.AdamW(list(logits.values()), lr=0.1, weight_decay=0.0), 400
    for step in range(steps):
        share = budget.expected({name: gate.open_sharp(value) for name, value in logits.items()})
        value, _ = penalty(logits, {}, share, target, step / steps)
        optimizer.zero_grad()
        (value + worth * (1 - share)).backward()
        optimizer.step()
        penalty.after(share.item(), target, step / steps)
    assert share.item() == pytest.approx(target, abs=1e-2)


def test_the_error_and_its_relative_form():
    made, target = torch.tensor([[1.0, 2], [0, 0]]), torch.tensor([[1.0, 4], [1, 3]])
    # ((0 + 4)/2, (1 + 9)/2), over (17/2, 10/2)
    absolute = MaskObjective(HardConcrete(), NormPenalty(1.0))
    assert absolute.error(made, target).tolist() == [2, 5]
    assert MaskObjective(HardConcrete(), NormPenalty(1.0), relative=True).error(made, target).tolist() == pytest.approx([4 / 17, 1])


# runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The uninterrupted run: noisy gates in the first half, settled ones after."""
    root, recipe = tmp_path_factory.mktemp("whole"), masks("criterion.settle=0.5")
    assert train(recipe, fresh(recipe, root)) == "finished"
    return root / "run"


def test_a_run_moves_the_logits_and_says_what_it_did(whole):
    metrics = RunView.open(whole).metrics().records
    updates = [record for record in metrics if "prune/error" in record]
    assert [record["step"] for record in updates] == [1, 2, 3, 4]
    for record in updates:
        assert 0 < record["prune/expected"] < 1 and 0 <= record["prune/binarization_gap"] < 1 and record["loss/grad_norm"] > 0
    assert [record["step"] for record in metrics if "eval/scene" in record or any("scene" in k for k in record)] == [0, 2, 4]
    logits = load_logits(final_weights(whole))
    start = build_parts(masks("criterion.settle=0.5")).policy.logits()
    assert all((logits[name] - value).abs().max() > 0.05 for name, value in start.items())


def test_the_same_run_twice_has_the_same_bits(tmp_path, whole):
    recipe = masks("criterion.settle=0.5")
    torch.manual_seed(99)
    train(recipe, fresh(recipe, tmp_path))
    assert_same(outcome_of(tmp_path / "run"), outcome_of(whole))


@pytest.mark.parametrize("after", [1, 3])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, whole, after):
    recipe = masks("criterion.settle=0.5")
    run = fresh(recipe, tmp_path)
    assert train(recipe, run, report=lambda step, _: request(run.folder, "stop") if step == after else None) == "stopped"
    torch.manual_seed(123)
    assert train(recipe, Run.resume(run.folder)) == "finished"
    assert_same(outcome_of(run.folder), outcome_of(whole))


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, "tests")
import torch
import test_masks as shared

root, at, threads = Path(sys.argv[1]), *map(int, sys.argv[2:])
torch.set_num_threads(threads)  # as the run that it is compared with
recipe = shared.masks("criterion.settle=0.5")
shared.train(recipe, shared.fresh(recipe, root), report=lambda step, _: os.kill(os.getpid(), 9) if step == at else None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 3], ids=["in the rounds", "settled"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, whole, at):
    """SIGKILL after an update is logged and before its checkpoint: the update is made again, from the weights of its round."""
    given = [str(tmp_path), str(at), str(torch.get_num_threads())]
    where = {"cwd": Path(__file__).parents[1], "env": os.environ | {"PYTHONPATH": "."}, "timeout": 300}
    done = subprocess.run([sys.executable, "-c", KILLED, *given], capture_output=True, text=True, **where)
    assert done.returncode == -9, done.stderr[-2000:]
    assert RunView.open(tmp_path / "run").checkpoints()[-1] == at - 1
    assert train(masks("criterion.settle=0.5"), Run.resume(tmp_path / "run")) == "finished"
    assert_same(outcome_of(tmp_path / "run"), outcome_of(whole))


def outcome_of(folder: Path):
    """Metrics without times, the state and the logits; mask runs keep no pictures."""
    view = RunView.open(folder)
    records = [{k: v for k, v in r.items() if k != "t" and not k.startswith("time/")} for r in view.metrics().records]
    state = torch.load(view.checkpoint() / "state.pt", weights_only=True)
    return records, state, load_logits(view.checkpoint() / "weights")


def test_the_published_form_runs(tmp_path):
    recipe = masks("learn.steps=2", name="shapes/ecodiff")
    assert train(recipe, fresh(recipe, tmp_path)) == "finished"
    records = outcome_of(tmp_path / "run")[0]
    assert all("prune/multiplier" not in record for record in records)
    policy = build_parts(recipe).policy
    assert len(set(policy.pairs.seeds)) == 1  # one noise for all prompts
    assert {value.item() for logits in policy.logits().values() for value in logits.unique()} == {3.0}


def steady(recipe):
    """With an eps in Adam far above rounding: at 1e-8 the sign of a gradient of that size would move a logit by 0.1."""
    return replace(recipe, train=replace(recipe.train, adam_epsilon=1e-3))


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    train_two("test_masks", {"run": "shared.steady(shared.masks('criterion.settle=0.5'))"}, tmp_path)
    recipe = steady(masks("criterion.settle=0.5"))
    train(recipe, fresh(recipe, tmp_path, "alone"))
    mine, alone = outcome_of(tmp_path / "run"), outcome_of(tmp_path / "alone")
    for name, value in alone[2].items():
        assert (mine[2][name] - value).abs().max() <= 1e-5
    for a, b in zip(mine[0], alone[0], strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-6), key
