"""YAML and key=value overrides to typed frozen dataclasses and back.

The dataclass is the schema: its fields are what a file may say, its defaults are written out by `dump`. All problems of
a file are reported at once, with their places, what was expected, what came and what to do.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from studio.annotation import Component, Kind, Weighted
from studio.errors import ConfigError
from studio.schema import Reader
from studio.wording import plain, shown

__all__ = ["ABSENT", "Component", "Kind", "Weighted", "apply_overrides", "build", "component", "differences", "dump"]
__all__ += ["flatten", "leaves", "load_yaml", "parse_yaml", "to_yaml"]

T = TypeVar("T")


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


ABSENT = _Absent()  # what `differences` shows for a value that only one side has


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice: the first value would be lost without a word. A key `on` is no truth value."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
            if key.tag == "tag:yaml.org,2002:bool":
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


def _read_yaml(text: str) -> Any:
    """`yaml.safe_load` with the loader above: plain values only, no Python objects."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError with the line when it is not readable."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: expected a readable YAML file, got {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text, got other bytes. Save the file as UTF-8.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The mapping in a YAML text; `where` names it in errors."""
    try:
        data = _read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_problem(where, error)) from error
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a block of `key: value` lines, got {shown(data)}. Start with a key.")
    return data


def _yaml_problem(where: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
    problem = getattr(error, "problem", None) or str(error)
    return f"{place}: expected YAML, got: {problem}. Check indentation, colons and quotes there."


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `data` with `a.b=value` applied in order; the value text is read as YAML."""
    result, problems = copy.deepcopy(dict(data)), []
    for override in overrides:
        problem = _override(result, override)
        if problem:
            problems.append(problem)
    if problems:
        raise ConfigError("\n".join(problems))
    return result


def _override(data: dict[str, Any], override: str) -> str | None:
    """Apply one override in place; the answer is the problem, if any."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(re.fullmatch(r"[\w-]+", key) for key in keys):
        return f"override {override!r}: expected key=value such as train.steps=40. Write the path with dots, no blanks."
    try:
        value = _read_yaml(text)
    except yaml.YAMLError:
        return f"override {override!r}: expected a YAML value after '=', got {text!r}. Quote it."
    node = data
    for depth, key in enumerate(keys[:-1], start=1):
        child = node.get(key)
        if child is None or isinstance(child, str):  # a bare component name gets options: grpo -> {name: grpo}
            child = node[key] = {} if child is None else {"name": child}
        if not isinstance(child, dict):
            inner = ".".join(keys[:depth])
            return f"override {override!r}: expected {inner} to be a block, got {shown(child)}. Set {inner}=... whole."
        node = child
    node[keys[-1]] = value
    return None


def build(cls: type[T], data: Mapping[str, Any], where: str = "recipe") -> T:
    """An instance of the frozen dataclass `cls`; one ConfigError with one line per problem when `data` does not fit."""
    reader = Reader()
    result = reader.block(cls, data, where, subject=where.rpartition(".")[2])
    reader.finish()
    return result


def component(kind: str, name: str, **options: Any) -> Component:
    """A validated component, as a recipe would hold it."""
    reader = Reader()
    result = reader.component(Component, kind, {"name": name, **options}, kind)
    reader.finish()
    return result


def dump(instance: Any) -> dict[str, Any]:
    """A dataclass as plain data with every default written out; `build(type(x), dump(x)) == x`."""
    if not is_dataclass(instance) or isinstance(instance, type):
        raise TypeError(f"dump: expected a dataclass instance, got {instance!r}.")
    return plain(instance)


class _Dumper(yaml.SafeDumper):
    pass


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes these line breaks plainly, and reading folds them into a blank
    style = '"' if any(c in text for c in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(data: Mapping[str, Any]) -> str:
    """YAML text with keys in the order given."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def leaves(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested blocks as {"a.b": value}; lists and empty blocks are values."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= leaves(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def flatten(data: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """For trackers, some of which take only numbers and text: everything else becomes JSON text."""
    return {k: v if isinstance(v, bool | int | float | str) else json.dumps(v) for k, v in leaves(data).items()}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted path, value in a, value in b) wherever two recipes differ; ABSENT where one side has no value."""
    left, right = leaves(a), leaves(b)
    paths = list(dict.fromkeys([*left, *right]))
    pairs = [(path, left.get(path, ABSENT), right.get(path, ABSENT)) for path in paths]
    return [(path, x, y) for path, x, y in pairs if x is ABSENT or y is ABSENT or x != y]
