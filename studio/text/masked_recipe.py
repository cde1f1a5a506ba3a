"""The `policy: masked_text` block of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from studio.text.recipe import Language

if TYPE_CHECKING:
    from studio.text.masked_diffusion import MaskedPolicy


@dataclass(frozen=True)
class Unmasking:
    """How a masked completion is filled in: block by block, in each the tokens first that the network is surest of."""

    limit: Annotated[int, Field(ge=1)] = 64  # tokens of a completion
    block: Annotated[int, Field(ge=1)] = 32  # tokens that are filled in together before the next block is begun
    steps: Annotated[int, Field(ge=1)] = 16  # network calls a block; at most one for each of its tokens
    temperature: Annotated[float, Field(gt=0)] = 0.6  # of rollouts, BGPO's; likelihoods are taken at 1
    eval_temperature: Annotated[float, Field(ge=0)] = 0.6  # 0 = the likeliest token
    stop: list[str] = field(default_factory=list)  # strings that end a completion, besides the model's own end
    chat: Literal["auto", "on", "off"] = "auto"  # put prompts into the tokenizer's chat template; auto = where it has one
    system: str = ""  # system message of the chat
    train_cut: bool = True  # whether completions cut at the limit train

    def calls(self) -> int:
        """Network calls of a completion that reaches the limit."""
        last = self.limit % self.block
        return self.limit // self.block * min(self.steps, self.block) + min(self.steps, last)


@dataclass(frozen=True)
class MaskedText:
    """A masked-diffusion language model; its decisions are the Monte-Carlo samples of a completion's likelihood bound."""

    model: Language = field(default_factory=lambda: Language(id="masked-arithmetic"))
    sampling: Unmasking = field(default_factory=Unmasking)
    samples: Annotated[int, Field(ge=1)] = 16  # M, masks per completion; BGPO's

    reads: ClassVar[str] = "text"
    provides: ClassVar[frozenset[str]] = frozenset({"fit", "ref"})

    def check(self) -> list[str]:
        """Warnings."""
        if self.samples > 1 and self.sampling.limit == 1:
            return ["policy.samples is above 1 with sampling.limit 1: there is one mask only, and every sample is the same"]
        return []

    def forwards(self) -> dict[str, float]:
        """Network calls per sample: those that fill in its blocks, and one for each mask before and while training."""
        return {"rollout": self.sampling.calls() + self.samples, "replay": self.samples}

    def build(self, seed: int) -> MaskedPolicy:
        from studio.text.masked_network import build_masked

        return build_masked(self.model, self.sampling, self.samples, self.provides, seed)
