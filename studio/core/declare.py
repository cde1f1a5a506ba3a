"""What a slot needs from a policy and how much of the batch it looks at: declared on slots, read by the objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from studio.errors import ConfigError
from studio.protocols import Stateful

if TYPE_CHECKING:
    from torch import Tensor

Span = Literal["decision", "row", "group", "batch"]
SPANS: tuple[Span, ...] = ("decision", "row", "group", "batch")
LEARNS = ("measure", "learn", "told")  # methods of a slot that learns from every optimizer step
REMEMBERS = ("update", "state_dict", "load_state_dict")  # of every slot with a memory
S = TypeVar("S")


@runtime_checkable
class Adaptive(Protocol):
    """A slot that learns from every optimizer step, and says where it is; what it measures adds up over parts and ranks."""

    def measure(self, log_ratio: Tensor, advantage: Tensor, weight: Tensor) -> Tensor: ...  # [B, T] each -> sums [K]
    def learn(self, measured: Tensor) -> None: ...  # the sums of the whole batch, after the step
    def told(self) -> dict[str, float]: ...  # metrics `area/name`


def needs(*names: str) -> Callable[[S], S]:
    """Marks a slot with the Evaluation fields, or "ref", that it reads. Where needs vary, a slot defines a property."""

    def mark(slot: S) -> S:
        target: Any = slot
        target.needs = frozenset(names)
        return slot

    return mark


def span(width: Span) -> Callable[[S], S]:
    """Marks a slot whose result for one decision depends on its whole row, on the rows of its prompt or on the batch."""

    def mark(slot: S) -> S:
        target: Any = slot
        target.span = width
        return slot

    return mark


def needs_of(slot: Any) -> frozenset[str]:
    """The declared needs of a slot; a slot without a declaration needs nothing."""
    return getattr(slot, "needs", frozenset())


def span_of(slot: Any) -> Span:
    """The declared span of a slot; a slot without a declaration looks at one decision at a time."""
    return getattr(slot, "span", "decision")


def widest(spans: Iterable[Span]) -> Span:
    """The widest of some spans."""
    return SPANS[max(map(SPANS.index, spans), default=0)]


def name_of(slot: Any) -> str:
    """What a slot is called in messages and metrics."""
    return getattr(slot, "__name__", type(slot).__name__)


def check_memory(slots: Mapping[str, Any]) -> None:
    """ConfigError for a slot that would not learn, or that a resumed run would find empty, without anybody noticing.

    A slot that learns has all the methods of its kind; what learns inside a slot is only asked through it.
    """
    for place, slot in slots.items():
        own = _methods(slot)
        wanted = (*LEARNS, *REMEMBERS) if own & set(LEARNS) else REMEMBERS if own else ()
        missing = [name for name in wanted if name not in own]
        if missing:
            raise ConfigError(
                f"Objective.{place}: expected {', '.join(wanted)} in {name_of(slot)}, got it without {', '.join(missing)}: "
                "it would not learn, or forget in a resumed run. Add them; they may do nothing."
            )
        for inner in _held(slot):
            unasked = sorted(_methods(inner) - own)
            if unasked and all(inner is not other for other in slots.values()):
                raise ConfigError(
                    f"Objective.{place}: expected what learns as a slot of its own, got {name_of(inner)} inside {name_of(slot)}, "
                    f"which does not ask it for {', '.join(unasked)}. Give it a slot, or pass these methods on."
                )


def _methods(slot: Any) -> set[str]:
    return {name for name in (*LEARNS, *REMEMBERS) if callable(getattr(slot, name, None))}


def _held(slot: Any) -> list[Any]:
    """What learns inside a slot: the object that a method belongs to, and fields of a dataclass."""
    found = [getattr(slot, "__self__", None)]
    for value in [getattr(slot, f.name, None) for f in fields(slot)] if is_dataclass(slot) else []:
        found += value if isinstance(value, list | tuple) else [value]
    return [one for one in found if isinstance(one, Adaptive) or (isinstance(one, Stateful) and hasattr(one, "update"))]
