"""How many bytes a picture takes as JPEG: the simplest reward that is not differentiable (DDPO)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rewards.facts import Facts
from rewards.pictures import as_pil
from studio.types import Prompts

if TYPE_CHECKING:
    from torch import Tensor


FACTS = Facts("DDPO (arXiv:2305.13301)", "round(255·x), JPEG", "compressibility grows toward 0 as pictures lose detail")


@dataclass(frozen=True)
class JpegSize:
    """Bytes of the JPEG / 1000 per picture; with `compress` the negative, so that simple pictures score high.

    Source: incompressibility and compressibility of DDPO (arXiv:2305.13301), at its quality 95.
    """

    compress: bool = False  # reward small files instead of large ones
    quality: int = 95  # of the JPEG, 1 to 100; values at different qualities do not compare

    name: ClassVar[str] = "jpeg_size"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = False
    license: ClassVar[str] = "Apache-2.0"
    model_id: ClassVar[str | None] = None
    facts: ClassVar[Facts] = FACTS

    @property
    def range(self) -> tuple[float, float]:
        return (-float("inf"), 0.0) if self.compress else (0.0, float("inf"))

    def __call__(self, samples: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] of pictures [B, 3, H, W] in [0, 1]; the prompts do not matter."""
        size = jpeg_kilobytes(samples, self.quality)
        return -size if self.compress else size


@dataclass(frozen=True)
class JpegCompressibility:
    """-(bytes of the JPEG / 1000) / divisor: high for simple pictures.

    Source: DDPO (arXiv:2305.13301) has the divisor 1; flow_grpo has 500.
    """

    divisor: float = 1.0
    quality: int = 95  # of the JPEG, 1 to 100

    name: ClassVar[str] = "jpeg_compressibility"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (-float("inf"), 0.0)
    license: ClassVar[str] = "Apache-2.0"
    model_id: ClassVar[str | None] = None
    facts: ClassVar[Facts] = FACTS

    def __call__(self, samples: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] of pictures [B, 3, H, W] in [0, 1]; the prompts do not matter."""
        return -jpeg_kilobytes(samples, self.quality) / self.divisor


@dataclass(frozen=True)
class JpegIncompressibility:
    """Bytes of the JPEG / 1000: high for pictures full of detail.  Source: DDPO (arXiv:2305.13301)."""

    quality: int = 95  # of the JPEG, 1 to 100

    name: ClassVar[str] = "jpeg_incompressibility"
    reads: ClassVar[str] = "image"
    differentiable: ClassVar[bool] = False
    range: ClassVar[tuple[float, float]] = (0.0, float("inf"))
    license: ClassVar[str] = "Apache-2.0"
    model_id: ClassVar[str | None] = None
    facts: ClassVar[Facts] = FACTS

    def __call__(self, samples: Tensor, prompts: Prompts) -> Tensor:
        """Scores [B] of pictures [B, 3, H, W] in [0, 1]; the prompts do not matter."""
        return jpeg_kilobytes(samples, self.quality)


def jpeg_kilobytes(images: Tensor, quality: int = 95) -> Tensor:
    """Size of every picture [B, 3, H, W] as JPEG in units of 1000 bytes, [B] float32."""
    import torch

    sizes = []
    for picture in as_pil(images):
        file = io.BytesIO()
        picture.save(file, format="JPEG", quality=quality)
        sizes.append(file.tell() / 1000)
    return torch.tensor(sizes, dtype=torch.float32, device=images.device)
