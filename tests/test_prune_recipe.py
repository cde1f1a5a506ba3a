"""Prune recipes are checked before a model is loaded, and say what is wrong with them."""

import pytest

import flows.load
from pruning.launch import load_prune_recipe
from pruning.recipe import Gated, PruneRecipe, overview
from studio.config import build, dump, parse_yaml, to_yaml
from studio.errors import ConfigError, NeedsError
from studio.recipe import describe, plan, recipe_names, recipe_source, work_of

OBS, LEARNED = "shapes/obs", "shapes/end-to-end"


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    """Loading a model fails the test."""

    def loaded(model):
        raise AssertionError(f"a model was loaded: {model}")

    monkeypatch.setattr(flows.load, "load_backbone", loaded)


def recipe_of(name: str, *overrides: str) -> PruneRecipe:
    return load_prune_recipe(name, list(overrides))[0]


@pytest.mark.parametrize("name", recipe_names("prune"))
def test_bundled_recipes_build_check_and_come_back(name):
    recipe, source = load_prune_recipe(name, [])
    recipe.check(prompts=False)
    assert describe(name, "prune") and work_of(name) == "prune"
    assert build(PruneRecipe, parse_yaml(source, name)) == recipe
    assert build(PruneRecipe, parse_yaml(to_yaml(dump(recipe)), "again")) == recipe
    if recipe.learned:
        recipe.training().check(prompts=False)


@pytest.mark.parametrize("name", [name for name in recipe_names("prune") if name.startswith("shapes/")])
def test_recipes_of_the_bundled_pipeline_have_no_warnings(name):
    assert recipe_of(name).check() == []


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        (OBS, "criterion=ops", "no criterion is named 'ops'; did you mean 'obs'?"),
        (OBS, "criterion=magnitud", "did you mean 'magnitude'?"),
        (OBS, "criterion.dampin=0.1", "did you mean 'damping'"),
        (OBS, "sites.kinds=[haeds]", "heads"),
        (OBS, "target.params=1.5", "target.params: expected the share that remains"),
        (OBS, "target={params: 0.8, flops: 0.8}", "exactly one of params, flops and latency"),
        (OBS, "rewards={scen: 1.0}", "did you mean 'scene'"),
        (OBS, "compensation.damping=-1", "damping"),
        (LEARNED, "learn.steps=0", "learn.steps"),
        (LEARNED, "criterion.settle=1.5", "settle"),
        ("shapes/obz", "seed=1", "did you mean 'shapes/obs'"),
        ("shapes/grpo-guard", "seed=1", "it is a recipe of `studio train`"),
    ],
)
def test_what_cannot_be_built(name, override, words):
    with pytest.raises(ConfigError) as problem:
        recipe_of(name, override)
    assert words in str(problem.value)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        (LEARNED, ["criterion.reward=0.5"], "recipe.protect: expected a reward, because criterion.reward is above 0, got none"),
        (OBS, ["heal.method=reward", "rewards={}"], "recipe.rewards: expected a reward to heal on, got none"),
        (LEARNED, ["criterion.start=4"], "recipe.criterion.start: expected a logit below 4.3881"),  # 4 + 2 of spread
        ("shapes/ecodiff", ["criterion.start=3.1"], "expected a logit below 3.0889, above which a gate with noise 0.5"),
        (LEARNED, ["criterion.first=tailor"], "did you mean 'taylor'?"),
        (LEARNED, ["criterion.first=ecodiff"], "recipe.criterion.first: expected a criterion without training, got ecodiff"),
        (LEARNED, ["learn.parts=3"], "recipe.learn.parts: expected a divisor of learn.rows = 8, got 3"),
        (OBS, ["sites.kinds=[blocks]"], "expected some of heads, neurons, modulation for criterion 'obs', got blocks"),
        ("shapes/depth", ["sites.kinds=[heads]"], "expected some of blocks for criterion 'block_influence', got heads"),
        (LEARNED, ["sites.kinds=[blocks]"], "for criterion 'taylor', got blocks"),
        (OBS, ["criterion=random", "sites.kinds=[blocks, heads]"], "expected blocks alone, because a block holds the other units"),
    ],
    ids=[
        "a reward to keep without one", "healing on nothing", "a start that cannot move", "so for the published form", "first",
        "a first that learns", "parts", "blocks without a score", "heads by influence", "blocks by the first", "blocks and heads",
    ],
)  # fmt: skip
def test_what_cannot_run(name, overrides, words):
    with pytest.raises(ConfigError) as problem:
        recipe_of(name, *overrides).check()
    assert words in str(problem.value)


def test_a_reward_to_keep_must_be_differentiable():
    with pytest.raises(NeedsError, match=r"recipe.protect.scene: expected a differentiable reward, got one that is not"):
        recipe_of(LEARNED, "criterion.reward=0.5", "protect={scene: 1.0}").check()
    recipe_of(LEARNED, "criterion.reward=0.5", "protect={clip: 1.0}").check()


@pytest.mark.parametrize(
    ("name", "kinds"), [(LEARNED, "[blocks]"), ("shapes/ecodiff", "[blocks]"), (OBS, "[heads, neurons, modulation]")]
)
def test_other_units_that_can_be_cut(name, kinds):
    first = ["criterion.first=null"] if name == LEARNED else []
    recipe_of(name, f"sites.kinds={kinds}", *first).check()


def test_a_prompt_file_without_prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected at least one prompt, got an empty file"):
        recipe_of(OBS, f"prompts={{name: file, train: {file}, test: {file}}}").check()


def test_warnings():
    assert any("calibration.rows is 8" in warning for warning in recipe_of(OBS, "calibration.rows=8").check())
    assert any("scores of obs are not comparable" in warning for warning in recipe_of(OBS, "allocation.scope=global").check())
    assert recipe_of("shapes/taylor", "allocation.scope=global").check() == []


def test_another_measure_of_the_target_replaces_the_recipe_s():
    assert recipe_of(OBS, "target.flops=0.7").target.measure == "flops"
    assert recipe_of(OBS, "target.params=0.7").target.share == 0.7


def test_mask_training_is_a_recipe_of_the_one_loop():
    overrides = ["learn={steps: 7, rows: 6, parts: 3, learning_rate: 0.3}", "allocation.scope=kind", "seed=5", "evaluate=9"]
    recipe = recipe_of(LEARNED, *overrides)
    training = recipe.training()
    assert isinstance(training.policy.options, Gated) and training.algorithm.name == "end_to_end" and training.seed == 5
    assert training.policy.options.scope == recipe.scope() == "kind"  # what is learned under is what is cut by
    assert (training.train.steps, training.train.groups_per_step, training.train.group_size) == (7, 6, 1)
    assert (training.train.gradient_accumulation_steps, training.train.learning_rate, training.train.ema) == (3, 0.3, 0.0)
    assert training.train.weight_decay == 0 and training.watch.prompts == 9
    assert recipe_of("shapes/ecodiff").training().train.weight_decay == 0.01  # published: AdamW's default acts on the logits
    assert recipe_of("shapes/ecodiff").training().policy.options.one_noise
    assert set(training.rewards) == {"scene", "clip"} and not training.held_out
    guarded = recipe_of(LEARNED, "criterion.reward=1.0", "protect={clip: 1.0}").training()
    assert set(guarded.rewards) == {"clip"} and set(guarded.held_out) == {"scene"}


def test_the_scope_is_the_criterion_s_own_unless_the_recipe_says():
    scopes = {name: recipe_of(name).scope() for name in (OBS, "shapes/taylor", "shapes/ecodiff", LEARNED)}
    assert scopes == {OBS: "layer", "shapes/taylor": "global", "shapes/ecodiff": "kind", LEARNED: "global"}
    assert recipe_of(OBS, "allocation.scope=kind").scope() == "kind"


def test_network_calls_by_hand():
    """8 steps of the trajectory, and of 8 all but the last are made again: 8 + 8 + 7 calls a pair, twice with guidance."""
    recipe = recipe_of(LEARNED)
    assert recipe.training().policy.options.forwards() == {"rollout": 8, "replay": 15}
    assert plan(recipe.training())["forwards per step (replay, with backward)"] == 8 * 15
    guided = recipe_of(LEARNED, "sampler.guidance=2.5").training().policy.options.forwards()
    assert guided == {"rollout": 16, "replay": 30}
    facts = overview(recipe_of(OBS, "calibration.packages=4"))
    assert facts["forwards of calibration"] == 8 * 128 * 4 and facts["target"] == "params 0.8 of the whole"
    assert overview(recipe)["rows at a time"] == 8


def test_the_source_of_a_recipe_starts_with_what_it_does():
    for name in recipe_names("prune"):
        assert recipe_source(name, "prune").startswith("# ")
