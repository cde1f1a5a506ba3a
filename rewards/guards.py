"""Statistics of pictures that no reward looks at: when they leave where they began, the reward is being gamed.

Motivated by a public report of a text-rendering reward that rose while pictures went dark, flat and alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from studio.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor

DARK = 0.15  # luminance below which a pixel is dark
LEVELS = 4  # color entropy counts LEVELS³ = 64 bins


def guard_stats(images: Tensor, group: Tensor | None = None) -> dict[str, Tensor]:
    """Statistics [B] float32 of pictures [B, 3, H, W] in [0, 1]; `diversity` only with group [B].

    luminance      mean luminance
    dark_share     share of pixels with luminance below 0.15
    edge_density   mean length of the Sobel gradient of luminance, per pixel
    color_entropy  bits, of the histogram over 4x4x4 RGB bins: 0 one color, 6 all bins alike
    jpeg_kb        size as JPEG of quality 95, in 1000 bytes
    diversity      mean distance to the other pictures of the group; 0 for a group of one
    """
    from rewards.image.jpeg import jpeg_kilobytes

    if images.ndim != 4 or images.shape[1] != 3:
        raise ShapeError(f"guard_stats: images have shape {list(images.shape)}, expected [B, 3, H, W]. Pass RGB images.")
    images = images.detach().float()
    light = luminance(images)
    stats = {
        "luminance": light.mean((1, 2)),
        "dark_share": (light < DARK).float().mean((1, 2)),
        "edge_density": edge_density(light),
        "color_entropy": color_entropy(images),
        "jpeg_kb": jpeg_kilobytes(images),
    }
    if group is not None:
        stats["diversity"] = diversity(images, group)
    return stats


def luminance(images: Tensor) -> Tensor:
    """0.299 R + 0.587 G + 0.114 B (Rec. 601, on the stored values): [B, 3, H, W] -> [B, H, W]."""
    return (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)


def edge_density(light: Tensor) -> Tensor:
    """Mean of √(gx² + gy²) over the inner pixels, [B, H, W] -> [B]; Sobel kernels / 8, so a ramp of slope s gives s."""
    import torch
    import torch.nn.functional as F

    across = light.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    gradient = F.conv2d(light[:, None], torch.stack([across, across.T])[:, None])
    return gradient.norm(dim=1).mean((1, 2))


def color_entropy(images: Tensor) -> Tensor:
    """-Σ p log2 p over the shares p of LEVELS³ equal RGB bins: [B, 3, H, W] -> [B] bits."""
    import torch

    level = (images * LEVELS).long().clamp(0, LEVELS - 1)
    color = (level[:, 0] * LEVELS + level[:, 1]) * LEVELS + level[:, 2]
    count = torch.zeros(len(images), LEVELS**3, device=images.device)
    count.scatter_add_(1, color.flatten(1), torch.ones_like(color.flatten(1), dtype=count.dtype))
    return torch.special.entr(count / color[0].numel()).sum(1) / torch.log(count.new_tensor(2.0))


def diversity(images: Tensor, group: Tensor) -> Tensor:
    """Mean RMS difference to the others of the group, of pictures averaged down to 8x8: [B, 3, H, W] -> [B]."""
    import torch
    import torch.nn.functional as F

    small = F.interpolate(images, size=(8, 8), mode="area").flatten(1)
    result = small.new_zeros(len(images))
    for value in torch.unique(group):
        rows = (group == value).nonzero().flatten().to(images.device)
        # the expanded form |a|² - 2ab + |b|² would leave equal pictures a distance
        apart = torch.cdist(small[rows], small[rows], compute_mode="donot_use_mm_for_euclid_dist")
        result[rows] = apart.sum(1) / max(len(rows) - 1, 1) / small.shape[1] ** 0.5
    return result


@dataclass(frozen=True)
class GuardBaseline:
    """Where the statistics were before training: mean and population standard deviation over the pictures of step 0."""

    mean: dict[str, float]
    std: dict[str, float]

    @classmethod
    def from_stats(cls, stats: Mapping[str, Tensor]) -> GuardBaseline:
        """The baseline from `guard_stats` of the untouched model."""
        return cls(
            {name: value.mean().item() for name, value in stats.items()},
            {name: value.std(correction=0).item() for name, value in stats.items()},
        )

    def violations(self, stats: Mapping[str, Tensor], sigmas: float = 3.0) -> dict[str, float]:
        """Guards whose mean left the baseline by more than `sigmas` standard deviations, with how many, signed.

        A statistic that is not a number is a violation too.  Whether one violation is an alarm, or two logs in a row
        are, is the caller's decision.
        """
        off = {
            name: (value.mean().item() - self.mean[name]) / max(self.std[name], 1e-6)
            for name, value in stats.items()
            if name in self.mean
        }
        return {name: score for name, score in off.items() if not abs(score) <= sigmas}
