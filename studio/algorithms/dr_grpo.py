"""Group-relative advantages without the two divisions that bias them: by standard deviation and by length."""

from __future__ import annotations

from dataclasses import dataclass

from studio.core import ByLength, Clip, GroupRelative, Objective


@dataclass(frozen=True)
class DrGRPO:
    """Dr. GRPO (arXiv:2503.20783).  A_b = r_b - mean_g; every decision weighs 1 / (rows·length); no KL."""

    clip: float = 0.2  # clip distance on both sides
    length: int | None = None  # C, the longest a completion can get (paper: the token budget); None = longest live row

    def objective(self) -> Objective:
        return Objective(GroupRelative(scale=None), surrogate=Clip(self.clip, self.clip), weighting=ByLength(self.length))
