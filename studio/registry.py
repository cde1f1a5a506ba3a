"""Which names exist for each kind of component, and the class behind a name, imported on demand."""

from __future__ import annotations

from importlib import import_module

from studio.errors import ConfigError
from studio.names import suggestion

# kind -> the tables ("module:variable") that hold {name: "module:Class"}
TABLES: dict[str, tuple[str, ...]] = {
    "algorithm": ("studio.algorithms:ALGORITHMS", "pruning:ALGORITHMS"),
    "reward": ("rewards:REWARDS",),
    "prompts": ("studio.prompts:PROMPTS",),
    "policy": ("flows:POLICIES", "studio.text:POLICIES", "pruning:POLICIES"),
    "criterion": ("pruning:CRITERIA",),
    "env": ("flows.control:ENVIRONMENTS",),
}


def table(kind: str) -> dict[str, str]:
    """All names of a kind with the place of their class; imports no component."""
    if kind not in TABLES:
        raise ConfigError(f"registry: no kind named {kind!r}{suggestion(kind, TABLES)} (kinds: {', '.join(TABLES)})")
    found: dict[str, str] = {}
    for place in TABLES[kind]:
        entries = load(place)
        twice = sorted(found.keys() & entries.keys())
        if twice:
            raise ConfigError(f"{place}: {', '.join(twice)} already in another table of kind {kind!r}. Rename one.")
        found |= entries
    return found


def names(kind: str) -> list[str]:
    """The known names of a kind, sorted."""
    return sorted(table(kind))


def lookup(kind: str, name: str) -> type:
    """The class called `name`; ConfigError with the nearest and all known names when there is none."""
    entries = table(kind)
    if name not in entries:
        raise ConfigError(unknown(kind, name))
    return load(entries[name])


def unknown(kind: str, name: str) -> str:
    """The sentence about a name that is not in the table of its kind."""
    known = names(kind)
    return f"no {kind} is named {name!r}{suggestion(name, known)} (known: {', '.join(known) or 'none'})"


def load(place: str):
    """What `module:attribute` names."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
