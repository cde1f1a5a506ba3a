"""Annotations and values in the words of error messages, and values as YAML can hold them."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from studio import registry
from studio.annotation import Component, Kind, Slot, Weighted, is_container, is_mapping, stripped

_SAID = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Any: "a value", Path: "a path"}


def in_words(annotation: Any) -> str:
    """An annotation in words."""
    base, metadata = stripped(annotation)
    kind = next((m.table for m in metadata if isinstance(m, Kind)), None)
    origin = get_origin(base)
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(a) for a in get_args(base) if a is not types.NoneType)
    if origin is Literal:
        *some, last = [repr(a) for a in get_args(base)]
        return f"{', '.join(some)} or {last}" if some else last
    if kind is not None:
        return f"a name ({', '.join(registry.names(kind))}) or a block with 'name'"
    if is_dataclass(base) or is_mapping(origin or base):
        return "a block of `key: value` lines"
    if is_container(base):
        inner = [a for a in get_args(base) if a is not Ellipsis]
        return f"a list of {' and '.join(dict.fromkeys(in_words(a) for a in inner))}" if inner else "a list"
    return _SAID.get(base, getattr(base, "__name__", str(base)))


def shown(data: Any) -> str:
    """A value of a YAML file in words, with its kind where that is the usual mistake."""
    if data is None or isinstance(data, bool):
        return json.dumps(data)
    if isinstance(data, str):
        return f"the text {_short(repr(data))}"
    if isinstance(data, Mapping):
        return f"a block ({_short(', '.join(map(str, data))) or 'empty'})"
    if isinstance(data, list | tuple | set | frozenset):
        return f"the list {_short(repr(list(data)))}"
    return _short(repr(data))


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def default_of(slot: Slot) -> str:
    """The default of a field that has one, as a file would say it."""
    return _short(json.dumps(plain(slot.default())))


def plain(value: Any) -> Any:
    """A value of a dataclass as YAML can hold it."""
    if isinstance(value, Component):
        return {"name": value.name, **plain(value.options)}
    if isinstance(value, Weighted):
        return {"name": value.name, "weight": value.weight, **plain(value.options)}
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(v) for v in value)
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"dump: {value!r} of type {type(value).__name__} has no form in YAML. Use plain fields.")
