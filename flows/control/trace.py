"""What a control policy recorded of its actions, to be asked about them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import Tensor

from studio.types import EVERY, Evaluation


@dataclass(frozen=True, slots=True)
class ActionTrace:
    """Tensors [B, T, ...] by name, and what the sampling policy said of each action [B, T, ...], or of its J parts [B, T, J,
    ...].
    """

    record: Mapping[str, Tensor]  # observation, noise, action, ...; "index" [B, T] counts the actions of all processes
    said: Evaluation
    parts: int = 1  # J: what an action consists of for its policy, e.g. the steps of its denoising chain

    def at(self, rows, steps=EVERY) -> ActionTrace:
        return ActionTrace(
            {name: value[rows][:, steps] for name, value in self.record.items()}, self.said.at(rows, steps), self.parts
        )

    def apart(self) -> tuple[ActionTrace, Evaluation]:
        """Every action as a row of its own: records [B·T, 1, ...], what was said [B·T, J, ...]."""

        def flat(x: Tensor) -> Tensor:
            return x.flatten(0, 1)[:, None]

        def parted(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.flatten(0, 1) if self.parts > 1 else x.flatten(0, 1)[:, None]

        said = Evaluation(**{f.name: parted(getattr(self.said, f.name)) for f in fields(Evaluation)})
        return ActionTrace({name: flat(value) for name, value in self.record.items()}, said, self.parts), said
