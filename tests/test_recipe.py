"""A recipe is checked before a model is loaded, and says what is wrong with it."""

import pytest

import flows.load
from studio.config import build, dump, parse_yaml, to_yaml
from studio.errors import ConfigError, NeedsError
from studio.parts import build_parts
from studio.recipe import Recipe, describe, load_recipe, plan, recipe_names

GUARD = "shapes/grpo-guard"


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model fails the test."""

    def loaded(model):
        raise AssertionError(f"a model was loaded: {model}")

    monkeypatch.setattr(flows.load, "load_backbone", loaded)


@pytest.mark.parametrize("name", recipe_names())
def test_bundled_recipes_build_check_and_come_back(name):
    recipe, source = load_recipe(name)
    recipe.check(prompts=False)  # recipes for large models name prompt files of yours
    assert describe(name)
    assert build(Recipe, parse_yaml(source, name)) == recipe
    data = dump(recipe)
    assert build(Recipe, data) == recipe
    assert build(Recipe, parse_yaml(to_yaml(data), "again")) == recipe


def test_overrides_come_back_too():
    recipe, _ = load_recipe(GUARD, ["policy.model.train=lora", "train.betas=[0.8, 0.99]", "rewards={jpeg_size: 2.0}"])
    assert recipe.policy.options.model.train == "lora" and recipe.train.betas == (0.8, 0.99)
    assert recipe.rewards["jpeg_size"].weight == 2.0
    assert build(Recipe, parse_yaml(to_yaml(dump(recipe)), "again")) == recipe


def test_a_recipe_from_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(to_yaml(dump(load_recipe(GUARD)[0])), encoding="utf-8")
    assert load_recipe(str(file))[0] == load_recipe(GUARD)[0]


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("shapes/grpo-gard", [], "grpo-guard"),
        ("nowhere.yaml", [], "nowhere.yaml: expected a readable YAML file"),
        (GUARD, ["train.stpes=3"], "steps"),
        (GUARD, ["train.steps=many"], "train.steps"),
        (GUARD, ["train.steps=1.5"], "train.steps"),
        (GUARD, ["train.steps=0"], "train.steps"),
        (GUARD, ["train.group_size=0"], "train.group_size"),
        (GUARD, ["algorithm=grpo_gard"], "grpo_guard"),
        (GUARD, ["rewards={scen: 1.0}"], "scene"),
        (GUARD, ["rewards={}"], "at least one reward"),
        (GUARD, ["policy.sampler.window.sise=3"], "size"),
    ],
)
def test_what_cannot_be_built(name, overrides, words):
    with pytest.raises(ConfigError) as problem:
        load_recipe(name, overrides)
    assert words in str(problem.value)


@pytest.mark.parametrize(
    ("overrides", "processes", "words"),
    [
        (["train.gradient_accumulation_steps=5"], 1, "= 5, got a remainder of 4"),  # 144 = 28·5 + 4
        ([], 5, "5 × 1 = 5, got a remainder of 4"),
        (["train.gradient_accumulation_steps=48"], 9, "= 432, got a remainder of 144"),  # each of the two divides 144
        (["policy.sampler.window.size=8"], 1, "8 steps from 0 do not fit below step 7 of 8"),
        (["policy.sampler.window.low=5"], 1, "3 steps from 5 do not fit"),
    ],
)
def test_a_plan_that_does_not_fit(no_model, overrides, processes, words):
    with pytest.raises(ConfigError) as problem:
        load_recipe(GUARD, overrides)[0].check(processes)
    assert words in str(problem.value)


def test_a_group_of_one_is_refused_where_samples_are_compared(no_model):
    alone = ["train.group_size=1", "train.groups_per_step=12"]
    with pytest.raises(ConfigError, match="recipe.train.group_size: expected at least 2 for algorithm 'grpo_guard'"):
        load_recipe(GUARD, alone)[0].check()
    load_recipe("shapes/draft", [*alone, "train.gradient_accumulation_steps=1"])[0].check()  # a gradient through the picture itself


def test_an_algorithm_that_the_policy_cannot_serve(no_model):
    with pytest.raises(NeedsError, match="value"):
        load_recipe(GUARD, ["algorithm=ppo"])[0].check()


def test_a_plan_that_fits_in_many_ways():
    recipe, _ = load_recipe(GUARD, ["train.gradient_accumulation_steps=4", "train.epochs=2", "train.steps=10"])
    recipe.check(processes=9)
    shown = plan(recipe, 9)
    # 12 × 12 samples of 8 steps, 3 of them trained
    assert shown["samples per step"] == 144 and shown["samples per process"] == 16 and shown["samples per part"] == 4
    assert shown["optimizer steps in all"] == 20
    assert shown["forwards per step (rollout)"] == 1152
    assert shown["forwards per step (replay, with backward)"] == 864


def test_warnings_about_small_groups():
    warnings = load_recipe(GUARD, ["train.groups_per_step=4", "train.group_size=4"])[0].check()
    assert any("groups_per_step" in w for w in warnings) and any("group_size" in w for w in warnings)
    assert load_recipe(GUARD)[0].check() == []


@pytest.mark.parametrize(("where", "text"), [("train", "a photo of a cat"), ("test", "a photo of a cat")])
def test_a_prompt_that_the_reward_cannot_judge(tmp_path, no_model, where, text):
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("a red circle\n", encoding="utf-8")
    bad.write_text("a red circle\n" * 40 + f"{text}\n", encoding="utf-8")  # far beyond the first iteration's prompts
    files = {"train": good, "test": good} | {where: bad}
    prompts = f"prompts={{name: file, train: {files['train']}, test: {files['test']}}}"
    with pytest.raises(ConfigError, match="cat"):
        build_parts(load_recipe(GUARD, [prompts, "held_out={}"])[0])


def test_a_prompt_file_that_cannot_be_read(tmp_path, no_model):
    with pytest.raises(ConfigError, match="readable UTF-8 file"):
        build_parts(load_recipe(GUARD, [f"prompts={{name: file, train: {tmp_path / 'none.txt'}}}", "held_out={}"])[0])


def test_half_precision_without_range_is_warned_about():
    assert any("prefer bf16" in warning for warning in load_recipe(GUARD, ["train.mixed_precision=fp16"])[0].check())
    assert not load_recipe(GUARD, ["train.mixed_precision=bf16"])[0].check()
