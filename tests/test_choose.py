"""Which mask is deployed: the one whose compensated network ends closest to the dense one on calibration pairs."""

import pytest
import torch
from test_masks import masks

from pruning.choose import errors, mask_of
from pruning.compensate import Compensation, refit
from pruning.launch import load_prune_recipe
from pruning.policy import BEGAN, FILE
from pruning.run import Work
from studio.parts import build_parts


@pytest.fixture(scope="module")
def policy():
    return build_parts(masks()).policy


def test_a_mask_that_keeps_everything_has_no_error_and_a_worse_mask_a_larger_one(policy):
    groups, before = policy.groups, {name: value.clone() for name, value in policy.dense.model.state_dict().items()}
    whole = {g.name: torch.arange(g.units) for g in groups}
    some = policy.budget.keep(policy.logits(), 0.96)
    least = policy.budget.keep(policy.logits(), policy.budget.least())

    def refitted(kept):
        return refit(policy.dense.model, groups, kept, policy.memory.moments, Compensation())

    same = (policy.dense, groups, {"whole": whole, "some": some, "least": least})
    found = errors(*same, refitted, {}, policy.pairs, 2)
    assert found["whole"] <= 1e-10 < found["some"] < found["least"]
    bare = errors(*same, lambda kept: {}, {}, policy.pairs, 2)
    assert bare["whole"] <= 1e-10 and found["some"] < bare["some"]  # what is compared is compensated
    assert all(torch.equal(value, before[name]) for name, value in policy.dense.model.state_dict().items())


def test_a_mask_is_one_where_a_unit_stays(policy):
    group = policy.groups[0]
    gates = mask_of([group], {group.name: torch.tensor([0, 2])}, "cpu")
    assert gates[group.name].nonzero().flatten().tolist() == [0, 2]


@pytest.mark.parametrize("better", ["learned", "start"])
def test_a_prune_run_takes_the_better_of_what_was_learned_and_where_it_began(tmp_path, monkeypatch, better):
    """Of two files of logits, the one that keeps what Taylor would drop first is the worse one, whichever it is."""
    from safetensors.torch import save_file

    recipe, _ = load_prune_recipe(
        "shapes/end-to-end", ["calibration={rows: 8, batch: 4}", "evaluate=2", "target.params=0.9", "sampler.steps=2"]
    )
    from pruning.build import dense_policy, gated_policy
    from studio.run import Run

    own = gated_policy(recipe.training().policy.options, recipe.seed)
    good, bad = own.start, {name: -value for name, value in own.start.items()}
    for file, values in ((FILE, good if better == "learned" else bad), (BEGAN, good if better == "start" else bad)):
        save_file(values, tmp_path / file)
    said: list[str] = []
    work = Work(recipe, Run(tmp_path, {}), dense_policy(recipe.model, recipe.sampler, recipe.seed), said.append)
    taken = work._better(tmp_path)
    assert all(torch.equal(taken[name], value) for name, value in good.items())
    assert said[-1].endswith(f"; {better} is taken")
