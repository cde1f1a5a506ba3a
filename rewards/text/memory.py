"""What a reward remembers of every problem: the shortest or mean number of a right answer, saved in checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from studio.types import Rollout

How = Literal["shortest", "mean"]


@dataclass
class Memory:
    """Problem key -> (number, how many it stands for)."""

    kept: dict[str, tuple[float, int]] = field(default_factory=dict)

    def get(self, key: str) -> float | None:
        """What is known of a problem, None at first."""
        return self.kept[key][0] if key in self.kept else None

    def add(self, key: str, number: float, how: How = "shortest") -> None:
        """One more right answer: the minimum, or the running mean, of all so far."""
        known, count = self.kept.get(key, (number, 0))
        new = min(known, number) if how == "shortest" else known + (number - known) / (count + 1)
        self.kept[key] = (new, count + 1)

    def learn(self, rollout: Rollout, right: str, number: str, how: How = "shortest") -> None:
        """All right answers of an iteration, from the parts of these names; every rank sees the same rows and learns the same."""
        if right not in rollout.parts or number not in rollout.parts:
            return
        rows = zip(rollout.prompts.key, rollout.parts[right].tolist(), rollout.parts[number].tolist(), strict=True)
        for key, was_right, found in rows:
            if was_right == 1:  # NaN where the row has no score
                self.add(key, found, how)

    def state_dict(self) -> dict[str, Any]:
        return {"kept": {key: list(pair) for key, pair in self.kept.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = {key: (float(number), int(count)) for key, (number, count) in state["kept"].items()}
