"""The bundled world: captioned scenes of colored shapes, their grammar, and how they are drawn.

A scene has one or two groups of 1 to 3 equal objects; two groups may stand in a spatial relation. The caption says exactly
what is drawn, so a picture can be verified against its caption without a learned judge (`rewards.image.scene`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SIZE = 32  # pixels per side
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 45, 45),
    "green": (45, 165, 65),
    "blue": (45, 80, 220),
    "yellow": (240, 200, 35),
    "purple": (150, 55, 190),
    "cyan": (45, 190, 210),
}
SHAPES = ("circle", "square", "triangle")
COUNTS = {1: "a", 2: "two", 3: "three"}
RELATIONS = ("left of", "right of", "above", "below")
MAX_OBJECTS = 4  # more do not fit apart from each other
HELD_OUT_SHARE = 8  # one caption in eight is never trained on


@dataclass(frozen=True, slots=True)
class Group:
    """`count` equal objects."""

    count: int
    color: str
    shape: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One or two groups; `relation` places the first relative to the second."""

    groups: tuple[Group, ...]
    relation: str | None = None

    def as_info(self) -> dict[str, Any]:
        """Plain data for prompt files and run folders."""
        return {"groups": [asdict(group) for group in self.groups], "relation": self.relation}


def caption(scene: Scene) -> str:
    """The sentence that describes a scene, e.g. 'two red circles left of a blue square'."""
    first, *rest = [_phrase(group) for group in scene.groups]
    return first if not rest else f"{first} {scene.relation or 'and'} {rest[0]}"


def parse(text: str) -> Scene:
    """The scene that a caption describes; ValueError when the sentence is not of this grammar."""
    link = re.search(rf" (and|{'|'.join(RELATIONS)}) ", text)
    parts = [text] if link is None else [text[: link.start()], text[link.end() :]]
    relation = None if link is None or link.group(1) == "and" else link.group(1)
    return Scene(tuple(_parse_group(part) for part in parts), relation)


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random scene: one group (1/4), two groups (1/4), two groups with a relation (1/2)."""
    kind = rng.integers(4)
    if kind == 0:
        return Scene((_sample_group(rng, 3),))
    while True:
        first, second = _sample_group(rng, 3), _sample_group(rng, 3)
        different = (first.color, first.shape) != (second.color, second.shape)
        if different and first.count + second.count <= MAX_OBJECTS:
            break
    relation = None if kind == 1 else RELATIONS[rng.integers(len(RELATIONS))]
    return Scene((first, second), relation)


def held_out(text: str) -> bool:
    """Whether a caption belongs to the test split; decided by its hash, so it holds for every seed and every size."""
    return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT_SHARE == 0


def scenes(seed: int, *, test: bool = False) -> Iterator[Scene]:
    """Endless scenes of one split; the same seed gives the same sequence."""
    rng = np.random.default_rng(seed)
    while True:
        scene = sample_scene(rng)
        if held_out(caption(scene)) is test:
            yield scene


def draw(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A picture of the scene, float32 [3, SIZE, SIZE] in [0, 1], anti-aliased, objects apart from each other."""
    image = np.full((3, SIZE, SIZE), rng.uniform(0.84, 0.98), dtype=np.float32)
    for (x, y, radius), group in zip(_place(scene, rng), _members(scene), strict=True):
        color = np.asarray(COLORS[group.color], dtype=np.float32)[:, None, None] / 255
        color = np.clip(color + rng.uniform(-0.03, 0.03), 0, 1)
        cover = coverage(group.shape, x, y, radius)
        image = image * (1 - cover) + color * cover
    return image.astype(np.float32)


def coverage(shape: str, x: float, y: float, radius: float, size: int = SIZE) -> np.ndarray:
    """Share of every pixel that an object covers, [size, size]: clip(1/2 - signed distance, 0, 1)."""
    v, u = np.mgrid[0:size, 0:size] + 0.5
    u, v = u - x, v - y
    if shape == "circle":
        distance = np.hypot(u, v) - radius
    elif shape == "square":
        distance = np.maximum(abs(u), abs(v)) - 0.9 * radius
    else:  # an isosceles triangle that points up: base 2*radius wide at v = +0.9 radius, tip at v = -radius
        slope = np.array([1.9, 1.0]) / np.hypot(1.9, 1.0)
        distance = np.maximum(slope[0] * abs(u) - slope[1] * (v + radius), v - 0.9 * radius)
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def words() -> list[str]:
    """Every word of the grammar."""
    plurals = [shape + "s" for shape in SHAPES]
    links = {word for relation in RELATIONS for word in relation.split()}
    return sorted({*COUNTS.values(), *COLORS, *SHAPES, *plurals, *links, "and"})


def _phrase(group: Group) -> str:
    return f"{COUNTS[group.count]} {group.color} {group.shape}{'s' if group.count > 1 else ''}"


def _parse_group(text: str) -> Group:
    match = re.fullmatch(rf"({'|'.join(COUNTS.values())}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})(s?)", text)
    count = next((n for n, word in COUNTS.items() if match and word == match.group(1)), 0)
    if match is None or (count > 1) != bool(match.group(4)):
        raise ValueError(f"expected '<{'|'.join(COUNTS.values())}> <color> <shape>', got {text!r}")
    return Group(count, match.group(2), match.group(3))


def _sample_group(rng: np.random.Generator, most: int) -> Group:
    return Group(int(rng.integers(1, most + 1)), list(COLORS)[rng.integers(len(COLORS))], SHAPES[rng.integers(len(SHAPES))])


def _members(scene: Scene) -> list[Group]:
    return [group for group in scene.groups for _ in range(group.count)]


def _place(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Centers and radius of all objects: apart by a gap, on their side of a line when there is a relation."""
    sides = [index for index, group in enumerate(scene.groups) for _ in range(group.count)]
    while True:
        radius = rng.uniform(4.0, 4.8)
        line = rng.uniform(14.0, 18.0)
        places: list[tuple[float, float, float]] = []
        for side in sides:
            spot = _spot(scene.relation, side, line, radius, places, rng)
            if spot is None:
                break
            places.append(spot)
        if len(places) == len(sides):
            return places


def _spot(relation, side, line, radius, places, rng) -> tuple[float, float, float] | None:
    low, high = radius + 0.5, SIZE - radius - 0.5
    for _ in range(30):
        x, y = rng.uniform(low, high, 2)
        along = {"left of": x, "right of": -x, "above": y, "below": -y}.get(relation)
        border = line if relation in ("left of", "above") else -line
        if along is not None and (along > border - 3.0 if side == 0 else along < border + 3.0):
            continue
        if all(max(abs(x - a), abs(y - b)) >= 2 * radius + 1.5 for a, b, _ in places):
            return float(x), float(y), radius
    return None
