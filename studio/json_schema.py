"""The JSON Schema of a recipe as it stands: what each field may be, its default, what the recipe says, and what it means.

A form, an editor or another program reads it instead of the dataclasses. The components that the recipe names bring their
own fields; the names that could stand there instead are an enum. Beside the words of the standard (draft 2020-12), a field
has `value` (what the recipe says, or the default) and `unit` (what it counts).
"""

from __future__ import annotations

import inspect
import io
import re
import textwrap
import tokenize
import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from studio import registry
from studio.annotation import Component, Kind, Slot, Weighted, is_container, is_mapping, slots_of, stripped
from studio.schema import Reader
from studio.wording import plain

DRAFT = "https://json-schema.org/draft/2020-12/schema"
ABSENT = object()  # a field that must be given and is not
TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}
LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum", "multiple_of": "multipleOf"}
MEASURES = {"seconds", "pixels", "tokens", "bytes", "MiB", "nats", "bits"}
UNITS = {"iterations", "updates", "steps", "decisions", "characters", "pictures", "pairs", "points", "prompts", "samples", "rows"}
UNITS |= {"completions", "episodes", "actions", *MEASURES}


def schema_of(cls: type, data: Mapping[str, Any], where: str = "recipe") -> dict[str, Any]:
    """The schema of the dataclass `cls` with the components and values that `data` names.

    A required field that is not given has no `value`, and checks of several fields together are left out, so that a recipe can
    be described while it is being written. ConfigError, one line per problem, for names and values that cannot stand.
    """
    walk = _Walk()
    found = walk.block(cls, data, where, where)
    walk.reader.finish()
    return {"$schema": DRAFT, **found}


class _Walk:
    """Goes over annotations and data together, as `Reader` does, and describes them."""

    def __init__(self) -> None:
        self.reader = Reader()

    def block(self, cls: type, data: Any, path: str, subject: str, extra: tuple[str, ...] = ()) -> dict[str, Any]:
        """A dataclass: an object with these fields and no others."""
        data, slots = {} if data is None else data, slots_of(cls)
        if not isinstance(data, Mapping):
            self.reader.wrong(path, "a block of `key: value` lines", data)
            return {}
        self.reader.strangers(data, [*extra, *slots], path, subject)
        return {
            "type": "object",
            "description": doc(cls),
            "properties": {slot.name: self.field(cls, slot, data, f"{path}.{slot.name}") for slot in slots.values()},
            "required": [slot.name for slot in slots.values() if slot.default is None],
            "additionalProperties": False,
        }

    def field(self, cls: type, slot: Slot, data: Mapping[str, Any], path: str) -> dict[str, Any]:
        default = ABSENT if slot.default is None else plain(slot.default())
        found = self.value(slot.annotation, data.get(slot.name, default), path, slot)
        told = meaning(cls, slot)
        parts = [part for part in (told, found.get("description")) if part]
        found |= {"description": "\n".join(parts)} if parts else {}
        if default is not ABSENT and "value" in found:
            found["default"] = default
        number = {"integer", "number"} & {*_listed(found.get("type"))}
        return found | ({"unit": unit} if number and (unit := unit_of(slot.name, told)) else {})

    def value(self, annotation: Any, data: Any, path: str, slot: Slot | None = None, key: str | None = None) -> dict[str, Any]:
        """One value against its annotation; `key` is the mapping key it stands under, if any."""
        base, metadata = stripped(annotation)
        if get_origin(base) in (Union, types.UnionType):
            choices = [a for a in get_args(base) if a is not types.NoneType]
            if len(choices) == 1 and _is_block(choices[0]):
                inner = Annotated[(choices[0], *metadata)] if metadata else choices[0]
                if data is None:
                    return _nullable(_some(inner)) | {"value": None}
                return _nullable(self.value(inner, data, path, slot, key))
        kind = next((m.table for m in metadata if isinstance(m, Kind)), None)
        if base in (Component, Weighted) and kind is not None:
            return self.component(base, kind, {} if data is ABSENT else data, path, key)
        if is_dataclass(base):
            return self.block(base, {} if data is ABSENT else data, path, path.rpartition(".")[2])
        if is_mapping(get_origin(base) or base) and len(get_args(base)) == 2 and _is_block(get_args(base)[1]):
            return self.blocks(get_args(base)[1], {} if data is ABSENT else data, path)
        return shape(annotation) | self.given(annotation, data, path, slot)

    def given(self, annotation: Any, data: Any, path: str, slot: Slot | None) -> dict[str, Any]:
        """What stands in the recipe, as its dataclass would hold it."""
        before = len(self.reader.problems)
        made = None if data is ABSENT else self.reader.value(annotation, data, path, slot)
        return {} if data is ABSENT or len(self.reader.problems) > before else {"value": plain(made)}

    def component(self, base: type, kind: str, data: Any, path: str, key: str | None) -> dict[str, Any]:
        """A named component: its own fields, and the names that could stand there instead."""
        weighted = base is Weighted
        if data == {} and key is None:
            return _some(Annotated[base, Kind(kind)])
        found = self.reader.named(base, kind, data, path, key)
        if found is None:
            return {}
        name, options = found
        own: dict[str, Any] = {"name": {"enum": registry.names(kind), "value": name}}
        if weighted:
            slot = Slot("weight", float, lambda: 1.0)
            weight = self.given(float, options.pop("weight", 1.0), f"{path}.weight", slot)
            own["weight"] = {"type": "number", "description": "factor in the sum of rewards", **weight, "default": 1.0}
        made = self.block(registry.lookup(kind, name), options, path, name, extra=("weight",) if weighted else ())
        if not made:
            return {}
        made["properties"] = own | made["properties"]
        made["required"] = ["name", *made["required"]]
        return made | {"kind": kind}

    def blocks(self, annotation: Any, data: Any, path: str) -> dict[str, Any]:
        """A mapping from names to components: those that the recipe has, and the form of any other."""
        data = {} if data is None else data
        if not isinstance(data, Mapping):
            self.reader.wrong(path, "a block of `key: value` lines", data)
            return {}
        found = {key: self.value(annotation, item, f"{path}.{key}", key=key) for key, item in data.items()}
        return {"type": "object", "properties": found, "additionalProperties": _some(annotation)}


def _is_block(annotation: Any) -> bool:
    base = stripped(annotation)[0]
    return base in (Component, Weighted) or is_dataclass(base)


def _some(annotation: Any) -> dict[str, Any]:
    """A block that the recipe does not have: only its name is known, or its fields."""
    base, metadata = stripped(annotation)
    if base not in (Component, Weighted):
        return shape(base)
    kind = next(m.table for m in metadata if isinstance(m, Kind))
    return {"type": "object", "properties": {"name": {"enum": registry.names(kind)}}, "required": ["name"], "kind": kind}


def shape(annotation: Any) -> dict[str, Any]:
    """What a plain value may be."""
    base, metadata = stripped(annotation)
    origin, arguments = get_origin(base), get_args(base)
    limits = _limits(metadata)
    if origin in (Union, types.UnionType):
        choices = [shape(a) for a in arguments if a is not types.NoneType]
        found = choices[0] | limits if len(choices) == 1 else {"anyOf": choices}
        return _nullable(found) if types.NoneType in arguments else found
    if origin is Literal:
        return {"enum": list(arguments)}
    if is_dataclass(base):
        required = [slot.name for slot in slots_of(base).values() if slot.default is None]
        fields = {slot.name: shape(slot.annotation) for slot in slots_of(base).values()}
        return {"type": "object", "properties": fields, "required": required, "additionalProperties": False}
    if is_mapping(origin or base):
        return {"type": "object", "additionalProperties": shape(arguments[1]) if arguments else {}} | limits
    if is_container(base):
        return _list(origin or base, arguments) | limits
    return ({"type": TYPES[base]} if base in TYPES else {}) | limits


def _list(kind: type, items: tuple) -> dict[str, Any]:
    if kind is tuple and items and items[-1] is not Ellipsis:
        return {"type": "array", "prefixItems": [shape(a) for a in items], "minItems": len(items), "maxItems": len(items)}
    unique = {"uniqueItems": True} if kind in (set, frozenset) else {}
    return {"type": "array", "items": shape(items[0]) if items else {}} | unique


def _limits(metadata: tuple) -> dict[str, Any]:
    """Bounds of numbers; pydantic's Field holds them as a list of small objects."""
    found: dict[str, Any] = {}
    for entry in metadata:
        for limit in getattr(entry, "metadata", [entry]):
            found |= {word: getattr(limit, name) for name, word in LIMITS.items() if getattr(limit, name, None) is not None}
    return found


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:
        return schema | {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    if "enum" in schema:
        return schema | {"enum": [*schema["enum"], None]}
    return schema | ({"type": [*_listed(schema["type"]), "null"]} if "type" in schema else {})


def _listed(types: str | list[str] | None) -> list[str]:
    return [types] if isinstance(types, str) else types or []


def doc(cls: type) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


def meaning(cls: type, slot: Slot) -> str:
    """The comment behind the field in the source; else what the docstring says about the field by name, or about its values."""
    owner = next(c for c in cls.__mro__ if slot.name in c.__dict__.get("__annotations__", {}))
    if told := comments(owner).get(slot.name):
        return told
    values = [str(a) for a in get_args(slot.annotation) if get_origin(slot.annotation) is Literal]
    starts = rf"\A`?{re.escape(slot.name)}`?:"
    named = re.compile("|".join([starts, *(rf"`{re.escape(v)}`|(?:^|· ){re.escape(v)}:" for v in values)]), re.MULTILINE)
    paragraphs = inspect.cleandoc(owner.__doc__ or "").split("\n\n")[1:]
    return " ".join(" ".join(p.split()) for p in paragraphs if named.search(p))


@cache
def comments(cls: type) -> dict[str, str]:
    """Field -> the comment at the end of its line; empty where there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    found, depth, line = {}, 0, []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        depth += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
        if token.type != tokenize.NEWLINE:
            line += [token] if token.type not in (tokenize.INDENT, tokenize.DEDENT, tokenize.NL) else []
            continue
        words = [part for part in line if part.type != tokenize.COMMENT]
        told = [part.string.lstrip("# ") for part in line if part.type == tokenize.COMMENT and part.start[0] >= words[0].start[0]]
        told = [text for text in told if not re.match(r"(fmt|noqa|type):?", text)]
        if depth == 1 and len(words) > 1 and words[1].string == ":" and told:
            found[words[0].string] = " ".join(told)
        line = []
    return found


def unit_of(name: str, told: str) -> str:
    """What a number counts: its comment begins with it (`pictures per forward`), or its name ends with a measure; else empty."""
    first, last = re.split(r"[^\w]", told, maxsplit=1)[0], name.rpartition("_")[2]
    return first if first in UNITS else last if last in MEASURES else ""
