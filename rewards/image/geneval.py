"""Are the objects of the prompt in the picture, in number, color and place? GenEval's rules over an object detector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rewards.facts import Facts
from rewards.image.clip import load_encoder
from rewards.image.colors import COLORS, name_colors
from rewards.image.detector import Found, load_detector
from rewards.pictures import check_pictures
from studio.errors import ConfigError
from studio.types import Prompts, Scores

if TYPE_CHECKING:
    from torch import Tensor

ALIASES = {"computer mouse": "mouse", "computer keyboard": "keyboard", "tv remote": "remote"}  # GenEval's names of COCO's classes
MOST = 16  # objects of a class that count, the most confident first
RELATIONS = ("left of", "right of", "above", "below")
Objects = Mapping[str, Sequence[Found]]  # by class
Name = Callable[[str, Sequence[Found]], list[str]]  # (class, objects) -> the color of each


@dataclass(frozen=True)
class Geneval:
    """Mean of the terms of `graded`; parts `geneval_strict`, every term exact, and `geneval_accuracy`, GenEval's own verdict.

    `info` is a line of GenEval's metadata: `include` with class, count and perhaps color and position, `exclude`, `tag`.
    Source: GenEval (arXiv:2310.11513) with the graded reward of flow_grpo.  Deviations: a detector of transformers
    stands in for mmdet's, and terms are cut at 0 where a surplus of objects would make them negative.
    """

    detector: str = "facebook/mask2former-swin-small-coco-instance"  # instance masks, or a detector of boxes
    clip: str = "openai/clip-vit-large-patch14"  # names the colors
    confidence: float = 0.3  # of a detection
    counting_confidence: float = 0.9  # the same for prompts with the tag counting
    device: str = "auto"
    batch_size: int = 8  # pictures per forward of the detector

    name: ClassVar[str] = "geneval"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    license: ClassVar[str] = "MIT (GenEval, CLIP); detector: see its card"
    facts: ClassVar[Facts] = Facts("GenEval (arXiv:2310.11513)", "round(255·x), then the detector's own; crops on gray for colors")

    @property
    def model_id(self) -> str:
        return f"{self.detector} + {self.clip}"

    def check(self, prompts: Prompts) -> None:
        """ConfigError for the first prompt whose info names no objects, or something unknown."""
        for text, info in zip(prompts.text, prompts.info, strict=True):
            required(text, info)

    def __call__(self, samples: Tensor, prompts: Prompts) -> Scores:
        """Scores of pictures [B, 3, H, W] in [0, 1]."""
        import torch

        check_pictures(self.name, samples)
        detect, encoder = load_detector(self.detector, self.device), load_encoder(self.clip, self.clip, self.device)
        for text, info in zip(prompts.text, prompts.info, strict=True):
            required(text, info, detect.kinds)
        grades = []
        for start in range(0, len(samples), self.batch_size):
            for row, found in enumerate(detect(samples[start : start + self.batch_size]), start):
                info, picture = prompts.info[row], samples[row]
                least = self.counting_confidence if info.get("tag") == "counting" else self.confidence

                def names(kind: str, things: Sequence[Found], picture: Tensor = picture) -> list[str]:
                    return name_colors(encoder, picture, kind, things)

                objects = by_class(found, least)
                grades.append((*graded(info["include"], objects, names), accurate(info, objects, names)))
        value, strict, accuracy = torch.tensor(grades, dtype=torch.float32).reshape(-1, 3).unbind(1)
        return Scores(value, None, {"geneval_strict": strict, "geneval_accuracy": accuracy})


def required(text: str, info: Mapping[str, Any], kinds: frozenset[str] | None = None) -> None:
    """ConfigError when info is no line of GenEval's metadata, or names a class that is not among the detector's."""
    include = info.get("include")
    problem = None
    if not include:
        problem = "no objects in info['include']"
    for need in include or ():
        if "class" not in need or need.get("count", 0) < 1:
            problem = f"{dict(need)}, which lacks class or count"
        elif kinds is not None and ALIASES.get(need["class"], need["class"]) not in kinds:
            problem = f"the class {need['class']!r}, which the detector does not know"
        elif need.get("color", "red") not in COLORS:
            problem = f"the color {need['color']!r}, not one of {', '.join(COLORS)}"
        elif "position" in need and (need["position"][0] not in RELATIONS or not 0 <= need["position"][1] < len(include)):
            problem = f"the position {need['position']!r}, not one of {', '.join(RELATIONS)} with the index of an object"
    if problem:
        raise ConfigError(f"reward 'geneval': prompt {text!r}: expected GenEval's metadata, got {problem}. Use its JSONL files.")


def by_class(found: Sequence[Found], least: float) -> dict[str, list[Found]]:
    """Detections of at least this confidence, the best `MOST` of every class."""
    kept: dict[str, list[Found]] = {}
    for thing in sorted(found, key=lambda thing: -thing.confidence):
        if thing.confidence > least and len(kept.setdefault(thing.kind, [])) < MOST:
            kept[thing.kind].append(thing)
    return kept


def of_class(objects: Objects, need: Mapping[str, Any]) -> Sequence[Found]:
    """The detections of the class that an entry of the metadata names."""
    return objects.get(ALIASES.get(need["class"], need["class"]), ())


def graded(include: Sequence[Mapping[str, Any]], objects: Objects, names: Name) -> tuple[float, float]:
    """(mean of the terms, 1 if all are exact), with n the number asked for.

    count     max(0, 1 - |n - found| / n) for every object asked for
    color     max(0, 1 - |n - of this color| / n), position 1 or 0, where they are asked for and the count is right;
              one term 0 in their place where the count is wrong
    """
    terms, exact = [], True
    for need in include:
        n, things = need["count"], of_class(objects, need)
        terms.append(closeness(n, len(things)))
        if len(things) != n:
            exact = False
            terms += [0.0] if "color" in need or "position" in need else []
            continue
        if "color" in need:
            terms.append(closeness(n, names(need["class"], things).count(need["color"])))
        if "position" in need:
            relation, index = need["position"]
            others = of_class(objects, include[index])
            right = len(others) == include[index]["count"]
            terms.append(float(right and all(relation in relations(a, b) for a in things for b in others)))
    return sum(terms) / len(terms), float(exact and all(term == 1 for term in terms))


def accurate(info: Mapping[str, Any], objects: Objects, names: Name) -> float:
    """GenEval's own verdict: at least the count of every object, and fewer of the excluded ones than stated."""
    for need in info["include"]:
        things = list(of_class(objects, need))[: need["count"]]
        if len(things) < need["count"]:
            return 0.0
        if "color" in need and names(need["class"], things).count(need["color"]) < need["count"]:
            return 0.0
        if "position" in need:
            relation, index = need["position"]
            other = info["include"][index]
            others = list(of_class(objects, other))[: other["count"]]
            if len(others) < other["count"] or not all(relation in relations(a, b) for a in things for b in others):
                return 0.0
    too_many = any(len(of_class(objects, need)) >= need["count"] for need in info.get("exclude", ()))
    return float(not too_many)


def relations(a: Found, b: Found, *, shrink: float = 0.1, least: float = 0.5) -> set[str]:
    """Where a is, seen from b.

    The offset of the box centers, shrunk per axis by 0.1·(size of a + size of b) and divided by its length before
    shrinking: left below -0.5 along x, right above 0.5, above and below the same along y.
    """
    offset, short = [], []
    for low in (0, 1):  # x, then y
        far = (a.box[low] + a.box[low + 2] - b.box[low] - b.box[low + 2]) / 2
        sizes = a.box[low + 2] - a.box[low] + b.box[low + 2] - b.box[low]
        offset.append(far)
        short.append(max(abs(far) - shrink * sizes, 0) * (1 if far > 0 else -1))
    length = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    if length == 0:
        return set()
    x, y = short[0] / length, short[1] / length
    holds = {"left of": x < -least, "right of": x > least, "above": y < -least, "below": y > least}
    return {name for name, true in holds.items() if true}


def closeness(asked: int, seen: int) -> float:
    """max(0, 1 - |asked - seen| / asked)."""
    return max(0.0, 1 - abs(asked - seen) / asked)
