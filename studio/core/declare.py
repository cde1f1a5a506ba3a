"""What a slot needs from a policy and how much of the batch it looks at: declared on slots, read by the objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

Span = Literal["decision", "row", "group", "batch"]
SPANS: tuple[Span, ...] = ("decision", "row", "group", "batch")
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
