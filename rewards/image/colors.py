"""The color of an object in a picture, by zero-shot classification with CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from rewards.image.clip import ClipEncoder
    from rewards.image.detector import Found

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {color} {kind}", "a photo of a {color}-colored {kind}", "a photo of a {color} object")
GRAY = 0x99 / 255  # around the object, where a mask says what is not part of it


def name_colors(encoder: ClipEncoder, picture: Tensor, kind: str, things: Sequence[Found]) -> list[str]:
    """The most similar of the ten colors for every object of a class in a picture [3, H, W] in [0, 1].

    The embedding of a color is the mean over three templates of unit vectors.  Source: GenEval (arXiv:2310.11513).
    """
    import torch
    import torch.nn.functional as F

    if not things:
        return []
    texts = [template.format(color=color, kind=kind) for color in COLORS for template in TEMPLATES]
    with torch.no_grad():
        colors = F.normalize(encoder.embed_texts(texts).view(len(COLORS), len(TEMPLATES), -1).mean(1), dim=-1)
        seen = torch.cat([encoder.embed_images(crop(picture, thing)[None]) for thing in things])
    return [COLORS[at] for at in (seen @ colors.T).argmax(1).tolist()]


def crop(picture: Tensor, thing: Found) -> Tensor:
    """The box of an object, at least one pixel, with gray where its mask says background: [3, h, w]."""
    high, wide = picture.shape[-2:]
    left, top = max(0, min(round(thing.box[0]), wide - 1)), max(0, min(round(thing.box[1]), high - 1))
    right, bottom = max(left + 1, min(round(thing.box[2]), wide)), max(top + 1, min(round(thing.box[3]), high))
    shown = picture if thing.mask is None else picture.where(thing.mask.to(picture.device), GRAY)
    return shown[:, top:bottom, left:right]
