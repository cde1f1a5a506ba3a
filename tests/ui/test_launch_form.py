"""What a form makes of a schema and what it makes of what was typed, without a browser."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from studio.config import apply_overrides, build, parse_yaml
from studio.errors import ConfigError
from studio.json_schema import schema_of
from studio.recipe import Recipe, recipe_source
from ui import spawn
from ui.draft import Answers, Draft, by_field, command_line, message
from ui.edit import Edit
from ui.form import form, step
from ui.overrides import fields, overrides, read, shown, structural, values, without
from ui.preview import marked

SOURCE = """
policy: {name: denoise, model: {id: shapes}}
algorithm: {name: grpo, clip: 0.1}
prompts: shapes
rewards: {jpeg_size: 1.0, scene: {weight: 0.5, extras: true}}
"""


def schema(*changes: str, source: str = SOURCE) -> dict:
    return schema_of(Recipe, apply_overrides(parse_yaml(source, "recipe"), changes))


def made(changes: dict, structure: dict | None = None, source: str = SOURCE) -> list[str]:
    own, structure = schema(source=source), structure or {}
    put = {path: text for path, text in structure.items() if text is not None}
    whole = without(schema(*structural(put, own), source=source), structure.keys() - put.keys())
    given = overrides(whole, changes, structure, own, parse_yaml(source, "recipe"))
    build(Recipe, apply_overrides(parse_yaml(source, "recipe"), given))  # what is made is a recipe
    return given


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train.steps": "3", "seed": "7", "nonsense": "1"}, ["train.steps=3", "seed=7"]),
        ({"train.steps": "100", "train.learning_rate": "1e-4"}, []),  # what it is already, said in another way
        ({"train.learning_rate": "3e-4"}, ["train.learning_rate=0.0003"]),
        ({"train.mixed_precision": "no", "policy.model.id": "no"}, ["policy.model.id='no'"]),
        (
            {"policy.model.id": "owner/name", "policy.model.resolution": "64"},
            ["policy.model.id=owner/name", "policy.model.resolution=64"],
        ),
        ({"policy.model.gradient_checkpointing": "true"}, ["policy.model.gradient_checkpointing=true"]),
        ({"train.betas": "[0.8,\n 0.99]"}, ["train.betas=[0.8, 0.99]"]),
        ({"report_to": "[wandb, 'on']"}, ["report_to=[wandb, 'on']"]),
        ({"rewards.scene.weight": "2"}, ["rewards.scene.weight=2.0"]),
        ({"rewards.jpeg_size.weight": "2", "rewards.jpeg_size.quality": "80"}, ["rewards.jpeg_size={weight: 2.0, quality: 80}"]),
        ({"rewards.jpeg_size.quality": "80"}, ["rewards.jpeg_size={weight: 1.0, quality: 80}"]),
    ],
)
def test_only_what_was_changed_becomes_an_override(changes, expected):
    assert made(changes) == expected


@pytest.mark.parametrize(
    ("structure", "changes", "expected"),
    [
        ({"algorithm": "rloo"}, {"algorithm.clip": "0.3"}, ["algorithm=rloo", "algorithm.clip=0.3"]),
        ({"rewards.ocr": "{weight: 1.0}"}, {"rewards.ocr.weight": "0.2"}, ["rewards.ocr={weight: 1.0}", "rewards.ocr.weight=0.2"]),
        (
            {"rewards.jpeg_size": None, "rewards.clip": "{weight: 1.0}"},
            {"rewards.jpeg_size.weight": "3"},
            ["rewards={scene: {name: scene, weight: 0.5, extras: true, gap: 3.0}}", "rewards.clip={weight: 1.0}"],
        ),
    ],
)
def test_blocks_come_before_what_stands_in_them(structure, changes, expected):
    assert made(changes, structure) == expected


def test_another_measure_of_a_target_takes_back_the_first():
    target = {name: {"type": ["number", "null"], "value": value} for name, value in (("params", 0.8), ("flops", None))}
    whole = {"properties": {"target": {"properties": target}}}
    source = {"target": {"params": 0.8}}
    assert overrides(whole, {"target.flops": "0.5"}, {}, whole, source) == ["target.flops=0.5", "target.params=null"]
    assert overrides(whole, {"target.params": "0.5"}, {}, whole, source) == ["target.params=0.5"]


@pytest.mark.parametrize(
    ("part", "value", "text", "yaml"),
    [
        ({"type": "number"}, 1e-05, "1e-05", "1.0e-05"),
        ({"type": "number"}, 64.0, "64", "64.0"),
        ({"type": "number"}, 0.1 + 0.2, "0.30000000000000004", "0.30000000000000004"),
        ({"type": ["integer", "null"]}, None, "", "null"),
        ({"type": "string"}, "true", "true", "'true'"),
        ({"type": "string"}, "a\nb", "a\nb", '"a\\nb"'),
        ({"type": ["string", "null"]}, None, "", "null"),
        ({"enum": ["no", "bf16"]}, "no", "no", "'no'"),
        ({"type": "boolean"}, False, "false", "false"),
        ({"type": "array"}, ["a", "b: c"], "[a, 'b: c']", "[a, 'b: c']"),
        ({"anyOf": [{"type": "array"}, {"type": "null"}]}, None, "", "null"),
        ({}, {"k": [1, 2.5]}, "{k: [1, 2.5]}", "{k: [1, 2.5]}"),
    ],
)
def test_a_value_goes_into_its_field_and_comes_back(part, value, text, yaml):
    assert shown(value) == text and read(part, text) == yaml
    assert apply_overrides({}, [f"x={yaml}"]) == {"x": value}


def test_text_that_is_no_value_is_left_for_the_check_to_explain():
    assert read({"type": "integer"}, "three") == "three" and read({"type": "integer"}, "2.5") == "2.5"
    assert read({"type": "array"}, "[1, 2") == "[1, 2" and read({"type": "number"}, "") == "null"


@pytest.mark.parametrize(("value", "expected"), [(0.0003, 1e-05), (0.9, 0.01), (5.0, 0.1), (64.0, 1.0), (0.0, 0.1), (-2e-6, 1e-7)])
def test_the_arrow_keys_step_by_a_tenth_of_the_values_size(value, expected):
    assert step(value) == pytest.approx(expected, rel=1e-9)


def test_every_field_of_the_schema_is_in_the_form_once_with_its_limits_and_escaped():
    whole = schema("policy.model.id='<b>\"x\"'")
    text = form(whole, schema())
    shown_paths = [path for path, _ in fields(whole) if not path.startswith(("env", "acting")) and not path.endswith(".name")]
    assert all(text.count(f'data-path="{path}"') == 1 for path in shown_paths) and 'data-path="acting' not in text
    assert 'data-path="train.steps" data-value="100" aria-describedby="h-train.steps" value="100" min="1" step="1"' in text
    assert "&lt;b&gt;&quot;x&quot;" in text and '"<b>"x' not in text
    assert text.count("<details") == text.count("</details>") and text.count("<div") == text.count("</div>")


def test_an_environment_hides_what_it_takes_the_place_of():
    source = recipe_source("control/multigoal-ppo")
    text = form(schema(source=source), schema(source=source))
    assert 'data-block="acting"' in text and 'data-block="rewards"' not in text and 'data-path="combine"' not in text


def test_problems_stand_by_the_field_or_block_that_they_name():
    known = ["train", "train.steps", "policy.sampler.window", "rewards.ocr.weight", "train.betas", "algorithm"]
    said = "\n".join(
        [
            "recipe.train.steps: expected a value greater than or equal to 1, got 0. Change it.",
            "recipe.train: expected 3 × 4 to divide.",
            "recipe.sampler.window: 3 steps do not fit.",
            "recipe.train.betas[1]: expected a number.",
            "override 'rewards.ocr.weight=1': expected a block.",
            "recipe.algorithm.name: no algorithm is named 'gpro'.",
            "algorithm 'x' needs value: choose another.",
            "recipe, line 2, column 3: expected YAML.",
        ]
    )
    found, others = by_field(said, known)
    assert set(found) == {*known} and len(others) == 2
    assert found["algorithm"].startswith("recipe.algorithm.name")


def test_the_end_of_what_a_command_said_is_its_message():
    assert message("warning\nConfigError: recipe.x: wrong.\nrecipe.y: too.\n") == "recipe.x: wrong.\nrecipe.y: too."
    assert message("Traceback\n  File\nKeyError: 'x'") == "'x'" and "Try again" in message("")


def test_the_command_line_is_what_a_shell_takes(tmp_path):
    draft = Draft("control/multigoal-ppo", "", ("env={name: gym}", "train.steps=3"))
    words = "studio train control/multigoal-ppo 'env={name: gym}' train.steps=3 --gpus 2 --name a --runs"
    assert command_line(draft, "a", 2, "0,1", tmp_path) == f"CUDA_VISIBLE_DEVICES=0,1 {words} {tmp_path}"
    assert f"studio prune {tmp_path}/.launch/NAME.yaml" in command_line(Draft(text="criterion: obs"), "", 1, "", tmp_path)


def test_changed_lines_are_marked_and_escaped():
    assert marked("a: 1\nb: 2", "a: 1\nb: <3>\nc: 4") == "a: 1\n<ins>b: &lt;3&gt;</ins>\n<ins>c: 4</ins>"


def test_the_same_question_is_asked_once_and_a_text_is_a_file_only_meanwhile(tmp_path, monkeypatch):
    asked = []

    def answer(words, *, timeout):
        asked.append(words)
        here = words[1].endswith(".yaml")
        assert not here or Path(words[1]).read_text() == "policy: x\n"
        return (2, "", f"ConfigError: {words[1]}, line 1: no.") if here else (0, '{"samples": 3, "warnings": ["w"]}', "")

    monkeypatch.setattr(spawn, "answer", answer)
    answers, draft = Answers(tmp_path), Draft("control/multigoal-ppo", "", ("seed=1",))
    found = [answers.check(draft, [], 2) for _ in range(3)]
    assert found[0].facts == {"samples": 3} and found[0].warnings == ["w"] and found[0].good and found[0] == found[2]
    assert asked == [["check", "control/multigoal-ppo", "seed=1", "--json", "--gpus", "2"]]
    wrong = answers.check(Draft(text="policy: x\n"), [])
    assert wrong.others == ["recipe, line 1: no."] and not wrong.good
    assert answers.check(Draft(text="a: [1\n"), []).others[0].startswith("recipe, line 2") and len(asked) == 2
    assert not list((tmp_path / ".launch").iterdir())


def event(**data) -> SimpleNamespace:
    return SimpleNamespace(**data)


def test_what_a_browser_sends_is_looked_at():
    edit = Edit.of(event(changes={"train.steps": "3"}, structure={"rewards.x": None}, name=" a ", processes="2", gpus=" 0, 1 "))
    assert edit == Edit({"train.steps": "3"}, {"rewards.x": None}, None, "a", 2, "0,1")
    assert Edit.of(event()) == Edit()


@pytest.mark.parametrize(
    "data",
    [
        {"changes": {"--runs": "/etc"}},
        {"changes": {"-x.y": "1"}},
        {"changes": {"a=b": "1"}},
        {"changes": {"train.steps": 3}},
        {"structure": {"rewards": ["x"]}},
        {"text": ["a"]},
        {"text": "x" * 200_001},
        {"processes": "0"},
        {"processes": "-1"},
        {"processes": "many"},
        {"gpus": "0;rm"},
        {"gpus": "0,0"},
        {"gpus": "all"},
    ],
)
def test_what_no_form_sends_is_refused(data):
    with pytest.raises(ConfigError, match="expected"):
        Edit.of(event(**data))


def test_an_override_cannot_be_an_option_of_the_command():
    for text in ("--runs=/etc", "-x=1", "=1", "train..steps=1"):
        with pytest.raises(ConfigError, match="expected key=value"):
            Draft("control/multigoal-ppo", "", (text,))


def test_values_of_a_schema_are_the_recipe_with_every_default():
    assert values(schema())["rewards"]["jpeg_size"] == {"name": "jpeg_size", "weight": 1.0, "compress": False, "quality": 95}


def test_the_check_comes_from_a_process_of_its_own(tmp_path):
    text = recipe_source("control/multigoal-ppo")
    found = Answers(tmp_path).check(Draft(text=text, overrides=("train.minibatches=0",)), ["train", "train.minibatches"])
    assert found.problems["train.minibatches"].startswith("recipe.train.minibatches: expected a value greater than or equal to 1")
    assert found.others == [] and not list((tmp_path / ".launch").iterdir())
