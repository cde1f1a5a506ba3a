"""`studio schema`: what it says of every bundled recipe holds of that recipe, and rebuilds it."""

from __future__ import annotations

import copy
import json
import math
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import Field

from pruning.recipe import PruneRecipe
from studio.cli import main
from studio.config import apply_overrides, build, dump, parse_yaml
from studio.errors import ConfigError
from studio.json_schema import comments, schema_of
from studio.recipe import Recipe, recipe_names, recipe_source
from ui.overrides import fields, values

KINDS = {"train": Recipe, "prune": PruneRecipe}


def described(name: str, work: str = "train", *overrides: str) -> dict[str, Any]:
    return schema_of(KINDS[work], apply_overrides(parse_yaml(recipe_source(name, work), name), overrides))


@pytest.mark.parametrize("work", KINDS)
def test_every_bundled_recipe_is_valid_under_its_schema_and_comes_back_from_its_values(work):
    for name in recipe_names(work):
        recipe = build(KINDS[work], parse_yaml(recipe_source(name, work), name))
        schema = json.loads(json.dumps(described(name, work)))
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(dump(recipe))))
        assert values(schema) == json.loads(json.dumps(dump(recipe))), name
        assert build(KINDS[work], values(schema)) == recipe, name


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.steps", 0),
        ("train.steps", "three"),
        ("train.ema", 1.0),
        ("train.betas", [0.9]),
        ("train.mixed_precision", "fp8"),
        ("train.stepz", 3),
        ("algorithm.name", "gpro"),
        ("policy.sampler.level", 2.5),
        ("rewards.scene.weight", "much"),
        ("prompts", 3),
    ],
)
def test_what_the_recipe_refuses_its_schema_refuses(path, value):
    recipe = json.loads(json.dumps(dump(build(Recipe, parse_yaml(recipe_source("shapes/grpo-guard"), "")))))
    wrong = copy.deepcopy(recipe)
    *blocks, last = path.split(".")
    at = wrong
    for block in blocks:
        at = at[block]
    at[last] = value
    validator = jsonschema.Draft202012Validator(described("shapes/grpo-guard"))
    assert validator.is_valid(recipe) and not validator.is_valid(wrong)
    with pytest.raises(ConfigError):
        build(Recipe, wrong)


@dataclass(frozen=True)
class Inner:
    """What is inside."""

    size: Annotated[int, Field(ge=8, multiple_of=8)] = 32


@dataclass(frozen=True)
class Sample:
    """A block for this test.

    how: the first way is quick · slow: the second is exact.
    """

    rate: Annotated[float, Field(gt=0, le=1)]
    patience_seconds: float | None = None
    count: Annotated[int, Field(ge=1)] = 3  # pictures per forward; more are cut
    how: Literal["quick", "slow"] = "quick"
    mark: str = "#"  # what begins "#a" line
    pair: tuple[int, float] = (1, 2.0)
    names: set[str] = field(default_factory=set)  # noqa: RUF100
    shares: tuple[str, ...] | dict[str, float] = ()
    inner: Inner = field(
        default_factory=Inner,  # with a comment of its own
    )  # fmt: skip
    rest: Inner | None = None  # another one


def test_types_limits_defaults_units_and_comments_are_those_of_the_source():
    schema = schema_of(Sample, {"rate": "1e-1", "inner": {"size": 64}})
    parts = schema["properties"]
    assert schema["required"] == ["rate"] and schema["additionalProperties"] is False
    assert parts["rate"] == {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "value": 0.1}  # text for YAML 1.1, as 1e-1 is
    assert parts["patience_seconds"] == {"type": ["number", "null"], "value": None, "default": None, "unit": "seconds"}
    count = {"type": "integer", "minimum": 1, "description": "pictures per forward; more are cut", "value": 3, "default": 3}
    assert parts["count"] == count | {"unit": "pictures"}
    assert parts["how"]["enum"] == ["quick", "slow"]
    assert parts["how"]["description"] == "how: the first way is quick · slow: the second is exact."
    assert parts["mark"]["description"] == 'what begins "#a" line' and parts["mark"]["value"] == "#"
    assert parts["pair"]["prefixItems"] == [{"type": "integer"}, {"type": "number"}] and parts["pair"]["maxItems"] == 2
    assert parts["names"]["uniqueItems"] and parts["names"]["value"] == [] and "description" not in parts["names"]
    assert [choice["type"] for choice in parts["shares"]["anyOf"]] == ["array", "object"]
    size = {"type": "integer", "minimum": 8, "multipleOf": 8, "value": 64, "default": 32}
    assert parts["inner"]["properties"] == {"size": size}
    assert parts["inner"]["description"] == "with a comment of its own\nWhat is inside."
    assert parts["rest"]["type"] == ["object", "null"] and parts["rest"]["value"] is None
    assert set(comments(Sample)) == {"count", "mark", "inner", "rest"}


def test_another_component_brings_its_own_fields_and_a_required_one_has_no_value_yet():
    schema = described("shapes/grpo-guard", "train", "algorithm=grpo", "prompts=file", "rewards.clip=0.5")
    algorithm, prompts = schema["properties"]["algorithm"], schema["properties"]["prompts"]
    assert algorithm["properties"]["name"]["value"] == "grpo" and "grpo_guard" in algorithm["properties"]["name"]["enum"]
    assert set(algorithm["properties"]) == {"name", "clip", "kl", "eps"}
    assert algorithm["properties"]["clip"]["description"].startswith("ε, clip distance on both sides")
    assert prompts["required"] == ["name", "train"] and "value" not in prompts["properties"]["train"]
    assert schema["properties"]["rewards"]["properties"]["clip"]["properties"]["weight"]["value"] == 0.5
    assert "scene" in schema["properties"]["rewards"]["additionalProperties"]["properties"]["name"]["enum"]


def test_an_environment_beside_prompts_is_described_although_it_cannot_run():
    schema = described("shapes/grpo-guard", "train", "env=multigoal")
    assert schema["properties"]["env"]["properties"]["name"]["value"] == "multigoal"


def test_almost_every_field_says_what_it_is():
    told = [bool(part.get("description")) for name in recipe_names("train") for _, part in fields(described(name))]
    assert sum(told) / len(told) > 0.6


def called(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["studio", *words])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


def test_the_command_prints_one_json_object(monkeypatch, capsys):
    code, out, err = called(monkeypatch, capsys, "schema", "control/multigoal-ppo", "train.steps=3")
    told = json.loads(out)
    assert (code, err) == (0, "") and told["title"] == "control/multigoal-ppo" and told["command"] == "train"
    assert told["description"] == "Gaussian PPO on six goals: the baseline that ends on one of them"
    assert (
        told["properties"]["train"]["properties"]["steps"] | {"default": 100, "value": 3, "unit": "iterations"}
        == (told["properties"]["train"]["properties"]["steps"])
    )


def test_another_measure_of_a_prune_target_replaces_the_recipes(monkeypatch, capsys):
    target = json.loads(called(monkeypatch, capsys, "schema", "shapes/end-to-end", "target.flops=0.5")[1])["properties"]["target"]
    assert {name: part["value"] for name, part in target["properties"].items()} == {"params": None, "flops": 0.5, "latency": None}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("shapes/grpo-gard",), "did you mean 'shapes/grpo-guard'"),
        (("shapes/grpo-guard", "train.stepz=3"), "recipe.train.stepz: 'train' has no such field; did you mean 'steps'"),
        (
            ("shapes/grpo-guard", "train.steps=0", "algorithm=gpro"),
            "recipe.train.steps: expected a value greater than or equal to 1",
        ),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(monkeypatch, capsys, words, says):
    code, out, err = called(monkeypatch, capsys, "schema", *words)
    assert (code, out) == (2, "") and says in err and "Traceback" not in err


def test_numbers_that_json_lacks_become_null(monkeypatch, capsys):
    told = json.loads(called(monkeypatch, capsys, "schema", "text/arithmetic-prl", "algorithm.eta=.inf")[1])
    assert told["properties"]["algorithm"]["properties"]["eta"]["value"] is None and math.isfinite(
        told["properties"]["algorithm"]["properties"]["eta"]["default"]
    )
