"""Pictures of flat worlds: paths among goals, clouds of actions, arrows of a velocity field; [3, SIDE, SIDE] in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

SIDE, SCALE = 360, 2  # pixels of the picture; it is drawn larger and reduced, which smooths lines
INK, SOFT, GOAL, WALL, DEATH = (30, 41, 59), (148, 163, 184), (5, 150, 105), (71, 85, 105), (190, 18, 60)
HUES = ((37, 99, 235), (217, 119, 6), (124, 58, 237), (13, 148, 136), (219, 39, 119), (101, 163, 13))
PATHS = 300  # paths that are drawn


@dataclass(frozen=True)
class Scene:
    """A flat world: what its pictures show besides the policy."""

    low: tuple[float, float]
    high: tuple[float, float]
    goals: Sequence[tuple[float, float]] = ()
    radius: float = 1.0  # within which a goal is reached
    walls: Sequence[tuple[float, float, float, float]] = ()  # low and high corner each
    deaths: Sequence[tuple[float, float, float, float]] = ()
    reach: float = 5.0  # bound of an action's numbers


class Canvas:
    """A square of world coordinates, y upward."""

    def __init__(self, low: Sequence[float], high: Sequence[float], title: str) -> None:
        self.low, self.high = np.asarray(low, float), np.asarray(high, float)
        self.size = SIDE * SCALE
        self.image = Image.new("RGB", (self.size, self.size), "white")
        self.pen = ImageDraw.Draw(self.image, "RGBA")
        self.title = title

    def at(self, points: np.ndarray) -> list[tuple[float, float]]:
        """World [.., 2] to pixels."""
        share = (np.asarray(points, float) - self.low) / (self.high - self.low)
        flat = np.stack([share[..., 0], 1 - share[..., 1]], -1) * self.size
        return [tuple(p) for p in flat.reshape(-1, 2)]

    def box(self, corners: Sequence[float], color: tuple[int, int, int]) -> None:
        (x0, y0), (x1, y1) = self.at(np.array([corners[:2], corners[2:]]))
        self.pen.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=(*color, 160))

    def disc(self, center: Sequence[float], radius: float, color: tuple[int, int, int], alpha: int = 70) -> None:
        (x, y), (edge, _) = self.at(np.array([center, (center[0] + radius, center[1])]))
        r = abs(edge - x)
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=(*color, alpha), outline=color, width=SCALE)

    def dots(self, points: np.ndarray, color: tuple[int, int, int], alpha: int, r: float = 1.5) -> None:
        for x, y in self.at(points):
            self.pen.ellipse((x - r * SCALE, y - r * SCALE, x + r * SCALE, y + r * SCALE), fill=(*color, alpha))

    def picture(self) -> Tensor:
        """[3, SIDE, SIDE] in [0, 1]."""
        self.pen.rectangle((0, 0, self.size, 24 * SCALE), fill=(255, 255, 255, 220))
        self.pen.text((8 * SCALE, 5 * SCALE), self.title, fill=INK, font_size=12 * SCALE)
        small = self.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 255


def world(scene: Scene, title: str) -> Canvas:
    """The empty world."""
    canvas = Canvas(scene.low, scene.high, title)
    for walls, color in ((scene.walls, WALL), (scene.deaths, DEATH)):
        for corners in walls:
            canvas.box(corners, color)
    for goal in scene.goals:
        canvas.disc(goal, scene.radius, GOAL)
    return canvas


def paths(scene: Scene, path: Tensor) -> Tensor:
    """Where episodes went.  path [L, copies, n], the first two numbers are the place; NaN after an episode's end."""
    place = path[:, :PATHS, :2].numpy()
    canvas = world(scene, f"paths of {place.shape[1]} episodes")
    for k in range(place.shape[1]):
        own = place[:, k][~np.isnan(place[:, k, 0])]
        if len(own) > 1:
            canvas.pen.line(canvas.at(own), fill=(*_hue(own[-1], scene), 60), width=SCALE)
    ends = np.stack([own[-1] for k in range(place.shape[1]) if len(own := place[:, k][~np.isnan(place[:, k, 0])])])
    canvas.dots(ends, INK, 120)
    return canvas.picture()


def actions(scene: Scene, first: Tensor) -> Tensor:
    """The cloud of first actions [n, 2]; the square is what the environment does not clip."""
    wide = scene.reach * 1.6
    canvas = Canvas((-wide, -wide), (wide, wide), f"first actions of {len(first)} episodes")
    corners = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1), (-1, -1)]) * scene.reach
    canvas.pen.line(canvas.at(corners), fill=SOFT, width=SCALE)
    canvas.dots(first.numpy().clip(-wide, wide), HUES[0], 90)
    return canvas.picture()


def velocity(scene: Scene, field: Callable[[Tensor, float], Tensor], tau: float = 0.5) -> Tensor:
    """Arrows of the velocity that the flow has halfway, over the plane of actions; each shows a fifth of the way it would go."""
    wide = scene.reach * 1.6
    axis = torch.linspace(-0.9 * wide, 0.9 * wide, 15)
    x = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    v = field(x, tau)
    canvas = Canvas((-wide, -wide), (wide, wide), f"velocity at time {tau:g} of the flow, at the start")
    for (x0, y0), (x1, y1) in zip(canvas.at(x.numpy()), canvas.at((x + v / 5).numpy()), strict=True):
        canvas.pen.line((x0, y0, x1, y1), fill=(*HUES[2], 200), width=SCALE)
        canvas.pen.ellipse((x0 - SCALE, y0 - SCALE, x0 + SCALE, y0 + SCALE), fill=INK)
    return canvas.picture()


def _hue(end: np.ndarray, scene: Scene) -> tuple[int, int, int]:
    if not scene.goals:
        return HUES[0]
    return HUES[int(np.argmin(((np.asarray(scene.goals) - end) ** 2).sum(1))) % len(HUES)]
