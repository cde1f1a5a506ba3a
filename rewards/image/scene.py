"""Does a picture show the scene of its caption? An exact judge for the bundled world, by segmentation, without a model.

Dimensions: B pictures, K palette colors, N objects found in the whole batch; a picture has SIZE x SIZE pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from flows.shapes import world
from rewards.facts import Facts
from studio.errors import ConfigError, ShapeError
from studio.types import Prompts, Scores

if TYPE_CHECKING:
    from torch import Tensor

PALETTE = np.array(list(world.COLORS.values()), dtype=np.float32) / 255  # [K, 3]
SMEARS = (0.7, 1.1)  # standard deviations in pixels at which templates are compared too
UNKNOWN = "unknown"  # the color or shape of something that is in the picture and not in the grammar


@dataclass(frozen=True, slots=True)
class Thing:
    """An object found in a picture; x and y are pixels from the upper left corner, as in `world.draw`."""

    color: str
    shape: str
    x: float
    y: float


@dataclass(frozen=True)
class SceneReward:
    """Mean of count, color and position terms, graded as GenEval's training reward; part `scene_strict` is 1 or 0.

    For every group of the caption, with n the number it asks for:
      count     max(0, 1 - |N - N_found| / N), N over all groups of this shape, N_found the objects of this shape;
      color     max(0, 1 - |n - n_found| / n), n_found the objects of this shape and color; 0 if the count is wrong.
    If the caption has a relation, one more term:
      position  1 if every object of the first group is on its side of all of the second; 0 if a count is wrong.
    With `extras`, one more term: max(0, 1 - surplus objects / objects asked for); without it surplus objects of a shape
    that the caption does not name cost nothing, as in GenEval.  `scene_strict`: the objects are exactly those of the
    caption, in color, shape and number, nothing else is in the picture, and the relation holds.

    Source: GenEval (arXiv:2310.11513) in the graded form of flow_grpo.  Deviation: GenEval judges one box against one
    box by direction, shrunken offset / distance > 0.5, which rejects 2 in 100 correctly drawn relations and accepts a
    group with a straggler; the world promises a line between the groups (`world._place`), so we test for that line.
    """

    extras: bool = False  # whether surplus objects cost something in the graded value
    gap: float = 3.0  # pixels between the centers of two groups along the relation's axis; drawn pictures have >= 6

    name: ClassVar[str] = "scene"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    license: ClassVar[str] = "Apache-2.0"
    model_id: ClassVar[str | None] = None
    facts: ClassVar[Facts] = Facts("GenEval (arXiv:2310.11513), graded", "area to 32x32", "1 for what the world itself draws")

    def check(self, prompts: Prompts) -> None:
        """ConfigError for the first prompt that describes no scene."""
        for number in range(len(prompts)):
            required_scene(prompts, number)

    def __call__(self, samples: Tensor, prompts: Prompts) -> Scores:
        """Scores of pictures [B, 3, H, W] in [0, 1]; a picture with a NaN is missing."""
        import torch

        wanted = [required_scene(prompts, number) for number in range(len(prompts))]
        images = small_images(samples)
        finite = np.isfinite(images).all(axis=(1, 2, 3))
        found = find_things(np.where(finite[:, None, None, None], images, 1.0))
        grades = [self.grade(scene, things) for scene, things in zip(wanted, found, strict=True)]
        value, strict = torch.tensor(grades, dtype=torch.float32).reshape(-1, 2).unbind(1)
        return Scores(value, None if finite.all() else torch.from_numpy(finite), {"scene_strict": strict})

    def grade(self, scene: world.Scene, things: list[Thing]) -> tuple[float, float]:
        """Graded value and strict accuracy of one picture."""
        exact = Counter({(group.color, group.shape): group.count for group in scene.groups})
        found = Counter((thing.color, thing.shape) for thing in things)
        terms: list[float] = []
        right_counts = True
        for group in scene.groups:
            asked = sum(other.count for other in scene.groups if other.shape == group.shape)
            seen = sum(thing.shape == group.shape for thing in things)
            terms.append(_closeness(asked, seen))
            right_counts &= asked == seen
            terms.append(_closeness(group.count, found[group.color, group.shape]) if asked == seen else 0.0)
        holds = scene.relation is None or relation_holds(scene, things, self.gap)
        if scene.relation is not None:
            terms.append(float(holds and right_counts))
        if self.extras:
            surplus = sum((found - exact).values())
            terms.append(max(0.0, 1 - surplus / sum(exact.values())))
        return sum(terms) / len(terms), float(found == exact and holds)


def required_scene(prompts: Prompts, number: int) -> world.Scene:
    """The scene in the info of this prompt, else the one its text describes; ConfigError when there is none."""
    text, given = prompts.text[number], prompts.info[number].get("scene")
    try:
        return world.parse(text) if given is None else _as_scene(given)
    except (ValueError, TypeError, KeyError) as problem:
        raise ConfigError(
            f"reward 'scene': prompt {number} ({text!r}) describes no scene of the bundled world: {problem}. "
            "Use captions of flows.shapes.world, give the scene as info['scene'], or choose another reward."
        ) from problem


def small_images(samples: Tensor) -> np.ndarray:
    """Pictures [B, 3, SIZE, SIZE] float32; other sizes are averaged down or repeated up by area."""
    import torch.nn.functional as F

    if samples.ndim != 4 or samples.shape[1] != 3:
        raise ShapeError(f"reward 'scene': samples have shape {list(samples.shape)}, expected [B, 3, H, W]. Pass RGB images.")
    images = samples.detach().float().cpu()
    if images.shape[-2:] != (world.SIZE, world.SIZE):
        images = F.interpolate(images, size=(world.SIZE, world.SIZE), mode="area")
    return images.numpy()


def relation_holds(scene: world.Scene, things: list[Thing], gap: float) -> bool:
    """Whether all centers of the first group lie on their side of all centers of the second, `gap` pixels apart."""
    sign = 1 if scene.relation in ("left of", "above") else -1
    along = "x" if scene.relation in ("left of", "right of") else "y"
    first, second = (
        [sign * getattr(thing, along) for thing in things if (thing.color, thing.shape) == (group.color, group.shape)]
        for group in scene.groups
    )
    return bool(first) and bool(second) and max(first) + gap <= min(second)


def find_things(images: np.ndarray, *, least: float = 14.0, most: float = 150.0, fit: float = 0.7) -> list[list[Thing]]:
    """The objects of every picture [B, 3, SIZE, SIZE].

    Pixels are unmixed into background and one palette color, connected pixels of one color make a component, and a
    component of at least `least` pixels is an object. Its shape is the template with the best overlap; unknown below
    `fit` and above `most` pixels, or else a picture all red would be a red square. `world.draw` covers 30 to 75 pixels.
    """
    cover, color = unmix(images)
    labels, owner, colors = components(cover, color, least)
    things: list[list[Thing]] = [[] for _ in images]
    if not len(owner):
        return things
    shape, x, y = fit_shapes(cover, labels, owner, colors, fit)
    shape[np.bincount(labels.ravel())[1:] > most] = -1
    for index, row in enumerate(owner):
        name = UNKNOWN if colors[index] == len(PALETTE) else list(world.COLORS)[colors[index]]
        kind = UNKNOWN if shape[index] < 0 else world.SHAPES[shape[index]]
        things[row].append(Thing(name, kind, float(x[index]), float(y[index])))
    return things


def unmix(images: np.ndarray, *, tolerance: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Every pixel as background plus one palette color: p = (1 - a)·background + a·color.

    Returns a for every color [B, K + 1, SIZE, SIZE] (not clipped; the last is for colors outside the palette) and the
    color of every pixel [B, SIZE, SIZE]: -1 background, K something farther than `tolerance` from every mixture.
    """
    count = len(PALETTE)
    # Objects cover less than a third of a picture, so the median is background; a picture full of color has none.
    background = np.clip(np.median(images, axis=(1, 2, 3), keepdims=False), 0.8, 1.0).astype(np.float32)
    away = background[:, None, None] - images.reshape(len(images), 3, -1)  # [B, 3, pixels]
    axis = background[:, None, None] - PALETTE  # [B, K, 3]
    length = (axis**2).sum(-1)[..., None]
    cover = axis @ away / length
    strength = (away**2).sum(1)[:, None]
    part = cover.clip(0, 1)
    distance = strength - 2 * part * cover * length + part**2 * length  # squared, to the nearest mixture
    color = distance.argmin(1)
    color[distance.min(1) > tolerance**2] = count
    other = np.sqrt(strength) / 0.8  # no axis to project on: how far from the background at all
    cover = np.concatenate([cover, other], axis=1)
    color[np.take_along_axis(cover, color[:, None], 1)[:, 0] < 0.5] = -1
    side = (world.SIZE, world.SIZE)
    return cover.reshape(len(images), -1, *side), color.reshape(len(images), *side)


def components(cover: np.ndarray, color: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Connected pixels of one color: labels [B, SIZE, SIZE] (0 none), and picture and color of labels 1..N."""
    from scipy import ndimage

    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, total = np.zeros(color.shape, dtype=np.int64), 0
    for value in range(cover.shape[1]):
        found, count = ndimage.label(color == value, structure=in_plane)
        labels = np.where(found > 0, found + total, labels)
        total += count
    area = np.bincount(labels.ravel(), minlength=total + 1)
    keep = area >= least
    keep[0] = False
    labels = (np.cumsum(keep) * keep)[labels]
    kept, first = np.unique(labels.ravel(), return_index=True)
    first = first[kept > 0]
    return labels, first // color[0].size, color.ravel()[first]


def fit_shapes(cover, labels, owner, colors, fit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape index (-1 unknown) and center of every component, each [N].

    Center and radius of each template follow from area and centroid of the component's soft coverage, which is exact
    to a fraction of a pixel where a bounding box is not; overlap is Σ min(a, b) / Σ max(a, b), the best over sharp and
    smeared templates: decoders round corners, and a smeared square looks more like a sharp circle than a sharp square.
    """
    from scipy import ndimage

    grown = ndimage.maximum_filter(labels, size=(1, 3, 3))
    labels = np.where(labels > 0, labels, grown)  # the soft edge belongs to the object
    mine = labels[owner] == np.arange(1, len(owner) + 1)[:, None, None]  # [N, SIZE, SIZE]
    soft = np.where(mine, cover[owner, colors], 0).clip(0)
    inside = np.where(soft >= 0.5, soft, np.nan).reshape(len(owner), -1)
    soft = (soft / np.nanmedian(inside, axis=1)[:, None, None]).clip(0, 1)  # a pale object is not a smaller one
    area = soft.sum((1, 2))
    middle = np.arange(world.SIZE) + 0.5
    x, y = (soft.sum(1) @ middle) / area, (soft.sum(2) @ middle) / area
    overlaps, centers = [], []
    for shape in world.SHAPES:
        radius = np.sqrt(area / {"circle": np.pi, "square": 1.8**2, "triangle": 1.9}[shape])
        top = y - (0.8 / 3) * radius if shape == "triangle" else y  # its centroid lies below its center
        drawn = world.coverage(shape, x[:, None, None], top[:, None, None], radius[:, None, None])
        looks = [drawn, *(ndimage.gaussian_filter(drawn, (0, sigma, sigma)) for sigma in SMEARS)]
        overlaps.append(np.max([_overlap(soft, look) for look in looks], axis=0))
        centers.append(top)
    best = np.argmax(overlaps, axis=0)
    every = np.arange(len(owner))
    return np.where(np.array(overlaps)[best, every] < fit, -1, best), x, np.array(centers)[best, every]


def _overlap(soft: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    return np.minimum(soft, drawn).sum((1, 2)) / np.maximum(soft, drawn).sum((1, 2))


def _closeness(asked: int, seen: int) -> float:
    return max(0.0, 1 - abs(asked - seen) / asked)


def _as_scene(given: world.Scene | Mapping[str, Any]) -> world.Scene:
    if isinstance(given, world.Scene):
        return given
    scene = world.Scene(tuple(world.Group(**group) for group in given["groups"]), given.get("relation"))
    return world.parse(world.caption(scene))  # a round trip through the grammar checks every word
