"""What was changed in a form, as `key=value` overrides: from the schema of a recipe and the text in its fields."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import yaml

from studio.config import apply_overrides, leaves
from studio.errors import ConfigError

Schema = Mapping[str, Any]


def is_block(schema: Schema) -> bool:
    """Whether a field is shown as fields of its own: an object that the recipe has."""
    return "properties" in schema and "value" not in schema


def is_component(schema: Schema) -> bool:
    """A block that is named, so that another can take its place."""
    return "kind" in schema and "name" in schema.get("properties", {})


def fields(schema: Schema, prefix: str = "") -> Iterator[tuple[str, Schema]]:
    """(dotted path, schema) of everything that has a value, in the order of the recipe."""
    for name, part in schema.get("properties", {}).items():
        if is_block(part):
            yield from fields(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", part


def blocks(schema: Schema, prefix: str = "") -> Iterator[tuple[str, Schema]]:
    """(dotted path, schema) of every block."""
    for name, part in schema.get("properties", {}).items():
        if is_block(part):
            yield f"{prefix}{name}", part
            yield from blocks(part, f"{prefix}{name}.")


def values(schema: Schema) -> dict[str, Any]:
    """The recipe that a schema describes, with every default written out; required fields that it lacks are left out."""
    found = {}
    for name, part in schema.get("properties", {}).items():
        if is_block(part):
            found[name] = values(part)
        elif "value" in part:
            found[name] = part["value"]
    return found


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value, ensure_ascii=False)
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=2**20, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def shown(value: Any) -> str:
    """A value as the text in its field: numbers as they are written, nothing for none, everything else as YAML on one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return (
        f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value) if _plain(value) else flow(value)
    )


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def kinds(schema: Schema) -> list[str]:
    """The JSON types that a field may have."""
    given = schema.get("type", [])
    return [given] if isinstance(given, str) else list(given)


def nullable(schema: Schema) -> bool:
    """Whether a field may be left empty."""
    choices = [schema, *schema.get("anyOf", ())]
    return any("null" in kinds(choice) or None in choice.get("enum", ()) for choice in choices)


def read(schema: Schema, text: str) -> str:
    """The text of a field as the YAML of an override."""
    if not text.strip() and nullable(schema):
        return "null"
    if "enum" in schema or kinds(schema)[:1] == ["string"]:
        return flow(text)
    with suppress(ValueError):
        if {"integer", "number"} & {*kinds(schema)}:
            return flow(int(text) if "integer" in kinds(schema) else float(text))
    with suppress(ConfigError, yaml.YAMLError):
        return flow(apply_overrides({}, [f"value={text}"])["value"])
    return text


def overrides(
    schema: Schema, changes: Mapping[str, str], structure: Mapping[str, str | None], base: Schema, source: Mapping[str, Any]
) -> list[str]:
    """`key=value` for what was changed, blocks before what stands in them, in the order of the recipe.

    `schema` has the blocks that `structure` asks for, `base` is that of the recipe itself, and `source` what the recipe says. In
    `structure` a block has the YAML of what it becomes, or None when it is removed.
    """
    blocks_first, known, found = structural(structure, base), dict(fields(schema)), {}
    for path, part in known.items():
        if path in changes:
            text = read(part, changes[path])
            if "value" not in part or text != flow(part["value"]):
                found[path] = text
    found |= _other_measures(known, found)
    return blocks_first + _weights(apply_overrides(source, blocks_first), schema, found)


def _weights(source: Mapping[str, Any], schema: Schema, found: Mapping[str, str]) -> list[str]:
    """The overrides, where a recipe that gives only a number for a reward (`ocr: 1.0`) has to be given a block for it."""
    given = []
    numbers = {path: value for path, value in leaves(source).items() if isinstance(value, int | float)}
    bare = {path: numbers[path] for path, _ in blocks(schema) if path in numbers}
    for path, text in found.items():
        block = next((block for block in bare if path.startswith(f"{block}.")), None)
        if block is None:
            given.append(f"{path}={text}")
        elif (weight := bare.pop(block)) is not None:
            inside = [f"{other.removeprefix(f'{block}.')}={t}" for other, t in found.items() if other.startswith(f"{block}.")]
            given.append(f"{block}={flow(apply_overrides({'weight': weight}, inside))}")
            bare[block] = None
    return given


def structural(structure: Mapping[str, str | None], base: Schema) -> list[str]:
    """The overrides that change which blocks there are.

    There is none that takes a block out, so the block around it is given whole, without it.
    """
    whole: dict[str, Any] = {}
    for path, text in structure.items():
        around, _, name = path.rpartition(".")
        if text is None:
            whole.setdefault(around, values(base["properties"].get(around, {}))).pop(name, None)
    given = [f"{path}={text}" for path, text in sorted(structure.items(), key=lambda pair: pair[0].count(".")) if text is not None]
    return [f"{path}={flow(block)}" for path, block in whole.items()] + given


def without(schema: Schema, paths: Iterable[str]) -> Schema:
    """The schema without some of its blocks."""
    for path in paths:
        name, _, rest = path.partition(".")
        parts = dict(schema["properties"])
        if rest and name in parts:
            parts[name] = without(parts[name], [rest])
        else:
            parts.pop(name, None)
        schema = {**schema, "properties": parts}
    return schema


def _other_measures(known: Mapping[str, Schema], found: Mapping[str, str]) -> dict[str, str]:
    """A prune recipe has one measure of its target: naming another takes back the first, which is said and not left to guess."""
    if not any(path.startswith("target.") and text != "null" for path, text in found.items()):
        return {}
    rest = [path for path in known if path.startswith("target.") and path not in found]
    return {path: "null" for path in rest if known[path].get("value") is not None}
