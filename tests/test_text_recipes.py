"""Bundled text recipes whose rows are more than one completion of a prompt, with a tiny model in place of the bundled one."""

from pathlib import Path

import pytest
import torch
from test_resume import assert_same
from test_text_train import outcome
from test_train import fresh
from tiny_lm import tiny_lm

from studio.cli import app
from studio.recipe import load_recipe
from studio.run import Run, RunView, request
from studio.text.tokenizer import build_tokenizer
from studio.train import train

PAIRS = ("dpo", "ipo", "slic", "hypo")
SAMPLERS = ("spo", "t-ppo", "brpo")
SMALL = {
    "hypo": ["train.groups_per_step=2"],
    "spo": ["train.groups_per_step=6", "prompts.of.train=9", "prompts.first=2"],
    "t-ppo": ["train.groups_per_step=6", "prompts.window=5", "policy.sampling.limit=12", "algorithm.warmup=1"],
    "brpo": ["train.groups_per_step=2", "train.group_size=10", "prompts.thinking=6", "prompts.cuts=2", "prompts.longest=4"],
}


def small(root: Path, name: str, *overrides: str, steps: int = 2):
    """A bundled recipe with a tiny model and few rows."""
    if not (root / "model").is_dir():
        tokenizer = build_tokenizer()
        tiny_lm(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, initializer_range=0.05).save_pretrained(
            root / "model"
        )
        tokenizer.save_pretrained(root / "model")
    sizes = [f"policy.model.id={root / 'model'}", f"train.steps={steps}", "train.checkpointing_steps=2", "watch.prompts=3"]
    sizes += ["watch.samples=1", "watch.every=100", "policy.sampling.limit=48", "train.ratio_tolerance=1e-5"]
    return load_recipe(f"text/arithmetic-{name}", [*sizes, *SMALL.get(name, ["train.groups_per_step=4"]), *overrides])[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


def rewarded(root: Path, name: str):
    """Four iterations with a reward that an untrained model gets some of."""
    return small(root, name, "rewards={function: {target: 'text_runs:digits', reads: text}}", steps=4)


@pytest.fixture(scope="module")
def whole(root):
    """An uninterrupted run of every sampler."""
    for name in SAMPLERS:
        recipe = rewarded(root, name)
        assert train(recipe, fresh(recipe, root, f"{name}-whole")) == "finished"
    return root


def state_of(folder: Path):
    return torch.load(RunView.open(folder).checkpoint() / "state.pt", weights_only=True)["parts"]


@pytest.mark.parametrize("name", [*PAIRS, *SAMPLERS])
def test_the_recipe_has_nothing_to_warn_of(name, capsys):
    with pytest.raises(SystemExit) as done:
        app(["check", f"text/arithmetic-{name}"])
    assert done.value.code == 0 and "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("name", PAIRS)
def test_preferences_between_solutions_and_mistakes_train(root, name):
    recipe = small(root, name, "train.learning_rate=1e-3", "policy.sampling.monitor=1", steps=3)
    run = fresh(recipe, root, name)
    assert train(recipe, run) == "finished"
    records = RunView.open(run.folder).metrics().records
    assert "reward/held_out.task" in records[0] and not any("reward/mean" in record for record in records)
    assert records[-1]["loss/grad_norm"] > 0 and records[-1]["sample/chosen_logp"] != records[1]["sample/chosen_logp"]


def test_every_prompt_is_estimated_before_training_and_drawn_by_what_is_tracked(root):
    recipe = small(root, "spo")
    run = fresh(recipe, root, "spo")
    assert train(recipe, run) == "finished"
    parts = state_of(run.folder)
    advantage = parts["objective"]["advantage"]
    assert len(advantage["counts"]) == 9 and 6 <= len(advantage["visited"]) <= 9 and parts["prompts"] == {"drawn": 2}
    # nothing is solved: 2 failures give 8·½/3 and 8·2½/3, every visit takes an eighth of both and adds a failure
    after = [pytest.approx(4 / 3 * 0.875**visits) for visits in range(3)]
    for key, (a, b) in advantage["counts"].items():
        assert a + b == pytest.approx(8) and a in after and (a == after[0]) != (key in advantage["visited"])


def test_unfinished_rows_wait_in_the_checkpoint(whole):
    waiting = state_of(whole / "t-ppo-whole")["prompts"]["waiting"]
    assert waiting and all(len(row["info"]["window"]["token"]) in (5, 10) for row in waiting)
    first, _, third, last = RunView.open(whole / "t-ppo-whole").metrics().records[1:]
    assert first["sample/cut"] > 0.5 and third["loss/value"] > 0 and third["sample/length"] > 5 and last["loss/grad_norm"] > 0


def test_thoughts_and_answers_are_rows_of_one_batch(whole):
    records = RunView.open(whole / "brpo-whole").metrics().records
    assert records[-1]["sample/length"] <= 6 and "reward/mean" in records[-1]


@pytest.mark.parametrize("name", SAMPLERS)
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(whole, name):
    recipe = rewarded(whole, name)
    run = fresh(recipe, whole, f"{name}-again")
    stop = train(recipe, run, report=lambda step, _: request(run.folder, "stop") if step == 2 else None)
    assert stop == "stopped" and train(recipe, Run.resume(run.folder)) == "finished"
    assert_same(outcome(whole / f"{name}-again"), outcome(whole / f"{name}-whole"))
