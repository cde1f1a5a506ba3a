"""Captions of the shapes world as a prompt source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from flows.shapes import world
from studio.types import Prompts, Rollout

TEST_SEED = 7


@dataclass(frozen=True)
class ShapesPrompts:
    """Random scenes; the held-out eighth of all captions is never trained on."""

    def check(self) -> list[str]:
        return []

    def build(self, seed: int) -> SceneStream:
        return SceneStream(seed)

    def held_out(self, count: int) -> Prompts:
        """`count` different held-out captions, the same for every seed."""
        return prompts_of(_distinct(count))


class SceneStream:
    """Endless training captions of one seed."""

    def __init__(self, seed: int) -> None:
        self.seed, self.position = seed, 0
        self._scenes = world.scenes(seed)

    def next(self, count: int) -> Prompts:
        self.position += count
        return prompts_of(list(islice(self._scenes, count)))

    def update(self, rollout: Rollout) -> None:
        """Scenes are drawn independently of results."""

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scenes = world.scenes(self.seed)
        self.position = 0
        self.next(state["position"])


def prompts_of(scenes: Sequence[world.Scene]) -> Prompts:
    captions = [world.caption(scene) for scene in scenes]
    return Prompts(captions, captions, [{"scene": scene.as_info()} for scene in scenes])


def _distinct(count: int) -> list[world.Scene]:
    found: dict[str, world.Scene] = {}
    for scene in world.scenes(TEST_SEED, test=True):
        found.setdefault(world.caption(scene), scene)
        if len(found) == count:
            break
    return list(found.values())
