"""What an annotation of a recipe's dataclasses means: markers of components, fields that a file may set, kinds of values."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin


@dataclass(frozen=True)
class Kind:
    """Marks a field whose block names a component: `algorithm: Annotated[Component, Kind("algorithm")]`."""

    table: str  # a key of registry.TABLES


@dataclass(frozen=True)
class Component:
    """A named component with its validated options. In a file: `{name: grpo, clip: 0.1}` or just `grpo`."""

    name: str
    options: Any  # an instance of the class that the registry knows under this name


@dataclass(frozen=True)
class Weighted:
    """A component that counts with a weight. In a file: `ocr: {weight: 0.5, ...}` or `ocr: 0.5`."""

    name: str
    weight: float
    options: Any


class Slot(NamedTuple):
    """One field of a dataclass that a file may set."""

    name: str
    annotation: Any
    default: Callable[[], Any] | None  # None = required


def _maker(field: Field) -> Callable[[], Any] | None:
    if field.default_factory is not MISSING:
        return field.default_factory
    return None if field.default is MISSING else lambda: field.default


@cache
def slots_of(cls: type) -> dict[str, Slot]:
    """The settable fields of a dataclass, resolved one by one: annotations of other fields may need torch."""
    slots = {}
    for f in fields(cls):
        if not f.init:
            continue
        owner = next(c for c in cls.__mro__ if f.name in c.__dict__.get("__annotations__", {}))
        holder = types.SimpleNamespace(__annotations__={f.name: f.type})
        scope = vars(sys.modules[owner.__module__])
        annotation = typing.get_type_hints(holder, scope, dict(vars(owner)), include_extras=True)[f.name]
        slots[f.name] = Slot(f.name, annotation, _maker(f))
    return slots


SCALARS = (int, float, str, bool)
LISTS = (list, tuple, set, frozenset)


def is_scalar(base: Any) -> bool:
    return base in SCALARS or get_origin(base) is Literal


def is_mapping(shape: Any) -> bool:
    return isinstance(shape, type) and issubclass(shape, Mapping)


def is_container(base: Any) -> bool:
    shape = get_origin(base) or base
    return isinstance(shape, type) and shape is not str and issubclass(shape, (*LISTS, Sequence, Mapping))


def stripped(annotation: Any) -> tuple[Any, tuple]:
    """An annotation without Annotated, and the metadata that was on it."""
    if get_origin(annotation) is Annotated:
        base, *metadata = get_args(annotation)
        return base, tuple(metadata)
    return annotation, ()
