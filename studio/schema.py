"""Plain data against annotations: the walk that turns blocks of a file into dataclasses and collects every problem."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from studio import registry
from studio.annotation import LISTS, Component, Kind, Slot, Weighted, is_container, is_mapping, is_scalar, slots_of, stripped
from studio.errors import ConfigError
from studio.names import suggestion
from studio.wording import default_of, in_words, shown


class _Bad:
    """Stands for a value that has a problem, so that reading can go on and find the others."""


_BAD = _Bad()


class Reader:
    """Walks annotations and data together and collects problems."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def finish(self) -> None:
        if self.problems:
            raise ConfigError("\n".join(self.problems))

    def wrong(self, path: str, expected: str, data: Any, slot: Slot | None = None) -> _Bad:
        advice = f"Change it or remove the line (default {default_of(slot)})." if slot and slot.default else "Change it."
        self.problems.append(f"{path}: expected {expected}, got {shown(data)}. {advice}")
        return _BAD

    def block(self, cls: type, data: Any, path: str, subject: str, extra: Sequence[str] = ()) -> Any:
        """A dataclass from a mapping; `extra` are keys that the caller has taken out, shown in the list of fields."""
        data = {} if data is None else data  # `train:` with every line below it commented out
        if not isinstance(data, Mapping):
            return self.wrong(path, "a block of `key: value` lines", data)
        slots, before, values = slots_of(cls), len(self.problems), {}
        self.strangers(data, [*extra, *slots], path, subject)
        for slot in slots.values():
            place = f"{path}.{slot.name}"
            if slot.name in data:
                values[slot.name] = self.value(slot.annotation, data[slot.name], place, slot)
            elif slot.default is None:
                self.problems.append(f"{place}: expected {in_words(slot.annotation)}, got nothing. Add this line.")
        return _BAD if len(self.problems) > before else self.made(cls, values, path)

    def strangers(self, data: Mapping, known: Sequence[str], path: str, subject: str) -> None:
        """A problem for every key that is not the name of a field."""
        for key in data:
            if key not in known:
                listed, guess = ", ".join(known) or "none", suggestion(str(key), known)
                self.problems.append(f"{path}.{key}: {subject!r} has no such field{guess} (fields: {listed})")

    def made(self, cls: type, values: dict[str, Any], path: str) -> Any:
        """The instance; a check of the class itself (`__post_init__`) that fails is a problem of the file."""
        try:
            return cls(**values)
        except ValueError as error:
            self.problems.append(f"{path}: {error}")
            return _BAD

    def component(self, shape: type, kind: str, data: Any, path: str, key: str | None = None) -> Any:
        """A Component or Weighted from `{name: ..., options}`; `key` is the name unless the block gives one."""
        found = self.named(shape, kind, data, path, key)
        return self._component(shape, registry.lookup(kind, found[0]), *found, path) if found else _BAD

    def named(self, shape: type, kind: str, data: Any, path: str, key: str | None = None) -> tuple[str, dict[str, Any]] | None:
        """The name in a component's block, which the registry knows, and the rest of the block; None after a problem."""
        if isinstance(data, str):
            data = {"name": data}
        elif shape is Weighted and isinstance(data, int | float) and not isinstance(data, bool):
            data = {"weight": data}
        data = {} if data is None else data
        if not isinstance(data, Mapping):
            self.wrong(path, in_words(Annotated[shape, Kind(kind)]), data)
            return None
        options = dict(data)
        name = options.pop("name", key)
        if not isinstance(name, str):
            self.wrong(f"{path}.name", f"a name ({', '.join(registry.names(kind))})", name)
            return None
        if name not in registry.table(kind):
            self.problems.append(f"{path}.name: {registry.unknown(kind, name)}")
            return None
        return name, options

    def _component(self, shape: type, cls: type, name: str, options: dict[str, Any], path: str) -> Any:
        own = ("name", "weight") if shape is Weighted else ("name",)
        if clash := [field for field in own if field in slots_of(cls)]:
            raise TypeError(f"{cls.__qualname__}: {clash[0]!r} belongs to the block around it. Rename the field.")
        taken = {}
        if shape is Weighted:
            slot = Slot("weight", float, lambda: 1.0)
            taken["weight"] = self.value(float, options.pop("weight", 1.0), f"{path}.weight", slot)
        made = self.block(cls, options, path, subject=name, extra=own[1:])
        return _BAD if made is _BAD else shape(name=name, options=made, **taken)

    def value(self, annotation: Any, data: Any, path: str, slot: Slot | None = None, key: str | None = None) -> Any:
        """One value against its annotation; `key` is the mapping key it stands under, if any."""
        base, metadata = stripped(annotation)
        kind = next((m.table for m in metadata if isinstance(m, Kind)), None)
        limits = [m for m in metadata if not isinstance(m, Kind)]
        origin = get_origin(base)
        if origin in (Union, types.UnionType):
            return self.union(base, metadata, data, path, slot, key)
        if base in (Component, Weighted):
            if kind is None:
                raise TypeError(f"{path}: annotate {base.__name__} with Kind(...).")
            return self.component(base, kind, data, path, key)
        if is_dataclass(base):
            return self.block(base, data, path, subject=path.rpartition(".")[2])
        if is_container(base):
            made = self.items(base, data, path, slot)
            return made if made is _BAD or not limits else self.leaf(Any, limits, made, path, slot)
        return self.leaf(base, limits, data, path, slot)

    def union(self, base: Any, metadata: Sequence, data: Any, path: str, slot: Slot | None, key: str | None) -> Any:
        """The first alternative that fits, exact types before conversions (so "1e-4" stays text in `str | float`)."""
        choices = [a for a in get_args(base) if a is not types.NoneType]
        if data is None and len(choices) < len(get_args(base)):
            return None
        choices = [Annotated[(a, *metadata)] if metadata else a for a in choices]
        for choice in choices if len(choices) > 1 else ():
            plain, limits = stripped(choice)
            if is_scalar(plain) and _exact(plain, limits, data)[0]:
                return data
        tried = []
        for choice in choices:
            attempt = Reader()
            made = attempt.value(choice, data, path, slot, key)
            if not attempt.problems:
                return made
            tried.append((choice, attempt.problems))
        structured = [p for c, p in tried if isinstance(data, Mapping) and not is_scalar(stripped(c)[0])]
        if len(tried) == 1 or len(structured) == 1:
            self.problems += structured[0] if len(structured) == 1 else tried[0][1]
            return _BAD
        return self.wrong(path, in_words(base), data, slot)

    def items(self, base: Any, data: Any, path: str, slot: Slot | None) -> Any:
        """A dict, list, tuple, set or frozenset with each item validated."""
        shape, inner, before = get_origin(base) or base, get_args(base), len(self.problems)
        if is_mapping(shape):
            data = {} if data is None else data
            if not isinstance(data, Mapping):
                return self.wrong(path, in_words(base), data, slot)
            keys, values = inner or (Any, Any)
            made = {self.value(keys, k, f"{path}.{k}"): self.value(values, v, f"{path}.{k}", key=k) for k, v in data.items()}
            return _BAD if len(self.problems) > before else made
        if not isinstance(data, list | tuple | set | frozenset):
            return self.wrong(path, in_words(base), data, slot)
        if shape is tuple and inner and inner[-1] is not Ellipsis:
            if len(inner) != len(data):
                return self.wrong(path, f"{len(inner)} values", list(data), slot)
        else:
            inner = (inner[0] if inner else Any,) * len(data)
        made = [self.value(a, item, f"{path}[{i}]") for i, (a, item) in enumerate(zip(inner, data, strict=True))]
        return _BAD if len(self.problems) > before else (shape if shape in LISTS else list)(made)

    def leaf(self, base: Any, limits: Sequence, data: Any, path: str, slot: Slot | None) -> Any:
        """A plain value: converted where YAML is known to mislead, then validated by pydantic without guessing."""
        fits, result = _exact(base, limits, _unmisled(base, data), strict=is_scalar(base))
        if fits:
            return result
        if not _exact(base, (), _unmisled(base, data), strict=is_scalar(base))[0]:  # the type, not a limit
            result = in_words(base)
        elif result.startswith(("greater", "less")):
            result = f"a value {result}"
        return self.wrong(path, result, data, slot)


def _exact(base: Any, limits: Sequence, data: Any, strict: bool = True) -> tuple[bool, Any]:
    """(True, value) or (False, what pydantic expected)."""
    try:
        return True, _adapter(base, tuple(limits)).validate_python(data, strict=strict)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        message = re.sub(r"^(Input should be|\w+ should have|\w+ should|Value error,) ", "", message)
        return False, re.sub(r" after validation, not \d+$", "", message)


_ADAPTERS: dict[tuple, tuple[TypeAdapter, tuple]] = {}


def _adapter(base: Any, limits: tuple) -> TypeAdapter:
    """A kept validator: making one is slow. Pydantic's Field has no hash, so the key holds its text."""
    key = (base, repr(limits))
    if key not in _ADAPTERS:
        annotation = Annotated[(base, *limits)] if limits else base
        _ADAPTERS[key] = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True)), limits
    return _ADAPTERS[key][0]


# numbers such as 1e-4 that YAML 1.1 reads as text because they have no dot
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
_WORDS = {False: ("no", "off", "false", "none"), True: ("yes", "on", "true")}


def _unmisled(base: Any, data: Any) -> Any:
    """What the user wrote, where YAML made something else of it: 1e-4, no, 40.0, a path."""
    if base in (int, float) and isinstance(data, str) and _EXPONENT.fullmatch(data.strip()):
        data = float(data)
    if base is int and isinstance(data, float) and data.is_integer():
        return int(data)
    if get_origin(base) is Literal and isinstance(data, bool) and not any(a is data for a in get_args(base)):
        return next((word for word in _WORDS[data] if word in get_args(base)), data)
    return data
