"""An environment that failed, or gave numbers that are none: the run ends and says which copy it was."""

from __future__ import annotations

from torch import Tensor

from studio.errors import StudioError


class EnvironmentFault(StudioError, RuntimeError):
    """A copy of an environment raised, died or gave something else than finite numbers."""


def check_numbers(where: str, first: int, observation: Tensor, reward: Tensor) -> None:
    """EnvironmentFault for the first of the copies [N, n], [N] with an observation or a reward that is not finite."""
    for what, good in (("observations", observation.isfinite().flatten(1).all(1)), ("rewards", reward.isfinite())):
        if not good.all():
            row = int((~good).nonzero()[0])
            got = (observation if what == "observations" else reward)[row]
            shown = ", ".join(f"{value:g}" for value in got.flatten()[:8].tolist())
            raise EnvironmentFault(
                f"{where}, copy {first + row}: expected finite {what}, got {shown}. Repair the environment, or end its episodes "
                "before its state leaves the range of numbers."
            )
