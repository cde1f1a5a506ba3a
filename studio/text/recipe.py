"""The `policy: text` block of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from studio.text.engine import Engine
from studio.text.sampling import Sampling

if TYPE_CHECKING:
    from studio.text.policy import TokenPolicy


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters on every linear layer but the head, unless others are named."""

    rank: Annotated[int, Field(ge=1)] = 32
    alpha: Annotated[float, Field(gt=0)] = 64.0
    targets: list[str] = field(default_factory=list)  # empty = all linear layers but the head


@dataclass(frozen=True)
class Language:
    """The language model to train."""

    id: str = "arithmetic"  # a bundled name, a local folder, or a Hub id
    train: Literal["lora", "full"] = "full"
    lora: Adapters = field(default_factory=Adapters)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of frozen weights; what is trained stays float32
    device: str = "auto"
    revision: str | None = None
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False  # recompute layers in the backward pass: a third more time, a fraction of the memory


@dataclass(frozen=True)
class Text:
    """A causal language model whose tokens are trained."""

    model: Language = field(default_factory=Language)
    sampling: Sampling = field(default_factory=Sampling)
    engine: Engine | None = None  # an inference server that writes the rollouts; evaluations are written here
    critic: bool = False  # a linear critic on the last hidden states, for objectives with a value

    reads: ClassVar[str] = "text"
    # with a critic, and with pairs; without them an instance says so
    provides: ClassVar[frozenset[str]] = frozenset({"logp", "entropy", "token", "tempered", "ref", "value", "given"})

    def __post_init__(self) -> None:
        if self.engine is not None and self.sampling.tools is not None:
            raise ValueError("sampling.tools: expected none with an engine, which cannot wait for answers, got some. Remove one.")
        absent = (set() if self.critic else {"value"}) | (set() if self.sampling.pairs else {"given"})
        object.__setattr__(self, "provides", self.provides - absent)

    def check(self) -> list[str]:
        """Warnings."""
        return []

    def forwards(self) -> dict[str, float]:
        """Network calls per sample: one for each token of a rollout, and one replay with gradients."""
        return {"rollout": self.sampling.limit, "replay": 1}

    def build(self, seed: int) -> TokenPolicy:
        from studio.text.load import build_policy

        return build_policy(self.model, self.sampling, self.provides, seed, self.engine)
