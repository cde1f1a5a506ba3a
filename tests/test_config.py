"""Recipes in YAML become typed dataclasses; whatever does not fit is explained, all of it at once."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from studio import config, registry
from studio.config import ABSENT, Component, Kind, Weighted, apply_overrides, build, dump
from studio.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Grpo:
    clip: Positive = 0.2
    kl: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True)
class Nft:
    beta: float  # required
    interpolate: bool = False


@dataclass(frozen=True)
class Ocr:
    languages: list[str] = field(default_factory=lambda: ["en"])
    strict: bool = True
    model: Tensor | None = field(default=None, init=False)  # loaded later; its annotation does not resolve here


@dataclass(frozen=True)
class Clip:
    size: Literal["small", "large"] = "small"

    def __post_init__(self):
        if self.size == "large":
            raise ValueError("large needs a download")


@dataclass(frozen=True)
class Train:
    steps: Count = 100
    lr: Positive = 1e-4
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    betas: tuple[float, float] = (0.9, 0.999)
    resume: Path | None = None
    limit: int | Literal["auto"] = "auto"
    note: float | str = ""
    tags: Annotated[list[str], Field(max_length=3)] = field(default_factory=list)


@dataclass(frozen=True)
class Ema:
    decay: Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Recipe:
    algorithm: Annotated[Component, Kind("algorithm")]
    rewards: dict[str, Annotated[Weighted, Kind("reward")]] = field(default_factory=dict)
    train: Train = field(default_factory=Train)
    ema: Ema | None = None
    seed: int = 42


ALGORITHMS = {"grpo": f"{__name__}:Grpo", "nft": f"{__name__}:Nft"}
REWARDS = {"ocr": f"{__name__}:Ocr", "clip": f"{__name__}:Clip"}
MINIMAL = {"algorithm": "grpo"}


@pytest.fixture(autouse=True, scope="module")
def tables():
    """The registry knows the components of this file only."""
    before = dict(registry.TABLES)
    registry.TABLES.update({"algorithm": (f"{__name__}:ALGORITHMS",), "reward": (f"{__name__}:REWARDS",)})
    assert __name__ in sys.modules
    yield
    registry.TABLES.update(before)


def problems(data, cls=Recipe):
    """The lines of the ConfigError that `data` gives."""
    with pytest.raises(ConfigError) as error:
        build(cls, data)
    return str(error.value).split("\n")


def test_defaults_are_used_where_the_file_says_nothing():
    assert build(Recipe, MINIMAL) == Recipe(Component("grpo", Grpo()), {}, Train(), None, 42)


def test_blocks_nest_and_components_get_their_own_fields():
    data = {
        "algorithm": {"name": "nft", "beta": 1},
        "rewards": {"ocr": {"weight": 0.5, "languages": ["de"]}, "clip": 2, "gold": {"name": "clip"}},
        "train": {"steps": 7, "betas": [0.8, 0.9], "resume": "a/b"},
        "ema": {"decay": 0.9},
    }
    assert build(Recipe, data) == Recipe(
        algorithm=Component("nft", Nft(beta=1.0)),
        rewards={
            "ocr": Weighted("ocr", 0.5, Ocr(["de"])),
            "clip": Weighted("clip", 2.0, Clip()),
            "gold": Weighted("clip", 1.0, Clip()),
        },
        train=Train(steps=7, betas=(0.8, 0.9), resume=Path("a/b")),
        ema=Ema(0.9),
    )


def test_unknown_field_of_a_component_names_the_nearest_and_all_fields():
    (line,) = problems({"algorithm": {"name": "grpo", "clp": 0.1}})
    assert line == "recipe.algorithm.clp: 'grpo' has no such field; did you mean 'clip'? (fields: clip, kl)"


def test_unknown_component_names_the_nearest_and_all_names():
    (line,) = problems({"algorithm": {"name": "gpro"}})
    assert line == "recipe.algorithm.name: no algorithm is named 'gpro'; did you mean 'grpo'? (known: grpo, nft)"


def test_all_problems_are_reported_at_once():
    data = {
        "algorithm": {"name": "nft"},
        "rewards": {"ocr": {"wieght": 1}, "clip": {"weight": "heavy"}, "hps": 1},
        "train": {"steps": "abc", "lr": -1, "tags": ["a", "b", "c", "d"]},
        "sed": 3,
    }
    assert problems(data) == [
        "recipe.sed: 'recipe' has no such field; did you mean 'seed'? (fields: algorithm, rewards, train, ema, seed)",
        "recipe.algorithm.beta: expected a number, got nothing. Add this line.",
        "recipe.rewards.ocr.wieght: 'ocr' has no such field; did you mean 'weight'? (fields: weight, languages, strict)",
        "recipe.rewards.clip.weight: expected a number, got the text 'heavy'. Change it or remove the line (default 1.0).",
        "recipe.rewards.hps.name: no reward is named 'hps'. (known: clip, ocr)",
        "recipe.train.steps: expected a whole number, got the text 'abc'. Change it or remove the line (default 100).",
        "recipe.train.lr: expected a value greater than 0, got -1. Change it or remove the line (default 0.0001).",
        "recipe.train.tags: expected at most 3 items, got the list ['a', 'b', 'c', 'd']. Change it or remove the line"
        " (default []).",
    ]


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"steps": True}, "a whole number, got true"),
        ({"steps": "40"}, "a whole number, got the text '40'"),
        ({"steps": 2.5}, "a whole number, got 2.5"),
        ({"steps": None}, "a whole number, got null"),
        ({"lr": True}, "a number, got true"),
        ({"mixed_precision": "fp8"}, "'no', 'fp16' or 'bf16', got the text 'fp8'"),
        ({"mixed_precision": True}, "'no', 'fp16' or 'bf16', got true"),
        ({"betas": [0.9]}, "2 values, got the list"),
        ({"limit": "never"}, "a whole number or 'auto', got the text 'never'"),
        ({"tags": "one"}, "a list of text, got the text 'one'"),
        ({"resume": 3}, "a path, got 3"),
        ({"note": [1]}, "a number or text, got the list"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_types_are_refused(train, expected):
    (line,) = problems({"algorithm": "grpo", "train": train})
    assert line.startswith(f"recipe.train.{next(iter(train))}: expected {expected}")


def test_item_of_a_list_is_named_by_its_position():
    (line,) = problems({"algorithm": "grpo", "train": {"betas": [0.9, "high"]}})
    assert line == "recipe.train.betas[1]: expected a number, got the text 'high'. Change it."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr: 1e-4", Train(lr=1e-4)),
        ("lr: 1", Train(lr=1.0)),
        ("steps: 1e3", Train(steps=1000)),
        ("steps: 40.0", Train(steps=40)),
        ("mixed_precision: no", Train(mixed_precision="no")),
        ("note: '1e-4'", Train(note="1e-4")),
        ("note: 2.5", Train(note=2.5)),
        ("limit: 1e2", Train(limit=100)),
    ],
)
def test_what_yaml_misreads_is_read_as_meant(text, expected):
    assert build(Train, config.parse_yaml(text, "test")) == expected


def test_missing_component_says_which_names_there_are():
    assert problems({}) == ["recipe.algorithm: expected a name (grpo, nft) or a block with 'name', got nothing. Add this line."]


def test_component_without_name_is_refused():
    (line,) = problems({"algorithm": {"clip": 0.1}})
    assert line == "recipe.algorithm.name: expected a name (grpo, nft), got null. Change it."


def test_checks_of_a_class_itself_are_problems_of_the_file():
    assert problems({"algorithm": "grpo", "rewards": {"clip": {"size": "large"}}, "seed": "x"}) == [
        "recipe.rewards.clip: large needs a download",
        "recipe.seed: expected a whole number, got the text 'x'. Change it or remove the line (default 42).",
    ]


def test_problem_inside_an_optional_block_keeps_its_place():
    (line,) = problems({"algorithm": "grpo", "ema": {"decay": 1}})
    assert line == "recipe.ema.decay: expected a value less than 1, got 1. Change it."


def test_a_block_with_every_line_commented_out_is_empty():
    assert build(Recipe, config.parse_yaml("algorithm: grpo\ntrain:\n  # steps: 3", "test")).train == Train()


def test_component_is_validated_in_python_too():
    assert config.component("algorithm", "grpo", clip=0.1) == Component("grpo", Grpo(clip=0.1))
    with pytest.raises(ConfigError, match="algorithm.clp: 'grpo' has no such field"):
        config.component("algorithm", "grpo", clp=0.1)


def test_component_class_with_a_field_called_name_is_a_programming_error(monkeypatch):
    @dataclass(frozen=True)
    class Named:
        name: str = ""

    monkeypatch.setattr(registry, "lookup", lambda kind, name: Named)
    with pytest.raises(TypeError, match="'name' belongs to the block around it"):
        build(Recipe, MINIMAL)


def test_overrides_apply_in_order_to_a_copy():
    data = {"train": {"steps": 1, "lr": 0.1}}
    changed = apply_overrides(data, ["train.steps=40", "train.lr=1e-5", "train.steps=50", "ema.decay=0.5"])
    assert changed == {"train": {"steps": 50, "lr": "1e-5"}, "ema": {"decay": 0.5}}
    assert data == {"train": {"steps": 1, "lr": 0.1}}
    assert build(Train, changed["train"]).lr == 1e-5


def test_override_of_an_option_keeps_a_bare_component_name():
    assert apply_overrides(MINIMAL, ["algorithm.clip=0.1"]) == {"algorithm": {"name": "grpo", "clip": 0.1}}


def test_override_of_a_component_drops_the_options_of_the_other_one():
    changed = apply_overrides({"algorithm": {"name": "grpo", "clip": 0.1}}, ["algorithm=nft", "algorithm.beta=1"])
    assert changed == {"algorithm": {"name": "nft", "beta": 1}}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("train..steps=3", "expected key=value"),
        ("--steps =3", "expected key=value"),
        ("train.tags=[a", "expected a YAML value after '='"),
        ("seed.x=3", "expected seed to be a block, got 1"),
    ],
)
def test_malformed_override_is_refused(override, expected):
    with pytest.raises(ConfigError) as error:
        apply_overrides({"seed": 1}, ["train.lr=1", override])
    assert f"override {override!r}: {expected}" in str(error.value)


def test_bad_yaml_names_file_and_line(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("train:\n  steps: 3\n  lr: [1, 2\nseed: 4\n")
    with pytest.raises(ConfigError, match=r"bad.yaml, line 4, column 5: expected YAML"):
        config.load_yaml(path)


def test_a_key_that_yaml_takes_for_a_truth_value_is_a_name():
    data = config.parse_yaml("on: off\nblock: {on: true, no: 1}", "here")
    assert data == {"on": False, "block": {"on": True, "no": 1}}


def test_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("train:\n  steps: 3\n  steps: 4\n")
    with pytest.raises(ConfigError, match="line 3, column 3: expected YAML, got: key 'steps' is given twice"):
        config.load_yaml(path)


def test_yaml_merge_keys_still_work():
    assert config.parse_yaml("a: &x {p: 1, q: 2}\nb: {<<: *x, p: 3}", "test")["b"] == {"p": 3, "q": 2}


def test_yaml_that_is_no_mapping_is_refused(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match=r"list.yaml: expected a block of `key: value` lines, got the list \['a'"):
        config.load_yaml(path)


def test_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="none.yaml: expected a readable YAML file, got No such file"):
        config.load_yaml(tmp_path / "none.yaml")


def test_yaml_never_builds_python_objects():
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        config.parse_yaml("a: !!python/object/apply:os.getcwd []", "test")


numbers = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=1e-300, max_value=1e300)
algorithms = st.one_of(
    st.builds(Grpo, clip=positive, kl=st.floats(0, 1e9)).map(lambda o: Component("grpo", o)),
    st.builds(Nft, beta=numbers, interpolate=st.booleans()).map(lambda o: Component("nft", o)),
)
rewards = st.one_of(
    st.builds(Weighted, st.just("ocr"), numbers, st.builds(Ocr, st.lists(st.text()), st.booleans())),
    st.builds(Weighted, st.just("clip"), numbers, st.just(Clip())),
)
trains = st.builds(
    Train,
    steps=st.integers(1),
    lr=positive,
    mixed_precision=st.sampled_from(["no", "fp16", "bf16"]),
    betas=st.tuples(numbers, numbers),
    resume=st.none() | st.sampled_from([Path("x"), Path("/a/b c")]),
    limit=st.integers() | st.just("auto"),
    note=st.text() | numbers | st.sampled_from(["1e-4", "no", "12:30", "null", "true"]),
    tags=st.lists(st.text(), max_size=3),
)
recipes = st.builds(
    Recipe,
    algorithm=algorithms,
    rewards=st.dictionaries(st.text(), rewards, max_size=3),
    train=trains,
    ema=st.none() | st.builds(Ema, st.floats(0, 0.999)),
    seed=st.integers(),
)


@settings(max_examples=60, deadline=None)
@given(recipes)
def test_dumping_and_building_again_changes_nothing(recipe):
    assert build(Recipe, dump(recipe)) == recipe
    assert build(Recipe, yaml.safe_load(config.to_yaml(dump(recipe)))) == recipe


def test_odd_line_breaks_survive_a_file():
    data = {"prompt": "one\x85two\u2028three", "plain": "größer"}
    assert yaml.safe_load(config.to_yaml(data)) == data
    assert "größer" in config.to_yaml(data)


def test_dump_writes_every_default_with_the_name_first():
    text = config.to_yaml(dump(build(Recipe, {"algorithm": "grpo", "rewards": {"ocr": 0.5}})))
    assert text == (
        "algorithm:\n  name: grpo\n  clip: 0.2\n  kl: 0.0\n"
        "rewards:\n  ocr:\n    name: ocr\n    weight: 0.5\n    languages:\n    - en\n    strict: true\n"
        "train:\n  steps: 100\n  lr: 0.0001\n  mixed_precision: 'no'\n  betas:\n  - 0.9\n  - 0.999\n"
        "  resume: null\n  limit: auto\n  note: ''\n  tags: []\nema: null\nseed: 42\n"
    )


def test_flatten_gives_trackers_only_numbers_and_text():
    data = {"a": {"b": 1, "c": {"d": None}}, "e": [1, 2], "f": {}, "g": True}
    assert config.flatten(data) == {"a.b": 1, "a.c.d": "null", "e": "[1, 2]", "f": "{}", "g": True}


def test_differences_name_the_path_and_both_values():
    a = {"algorithm": {"name": "grpo", "clip": 0.2}, "train": {"steps": 4}, "seed": 1}
    b = {"algorithm": {"name": "grpo", "clip": 0.1, "kl": 0}, "train": {"steps": 4}}
    assert config.differences(a, b) == [("algorithm.clip", 0.2, 0.1), ("seed", 1, ABSENT), ("algorithm.kl", ABSENT, 0)]
    assert config.differences(a, a) == []
