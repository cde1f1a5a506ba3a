"""Pictures as tensors, as 8-bit arrays, as PIL images and as lossless PNG files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from studio.errors import ShapeError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor


FIELDS = ("image", "reference")  # of a prompt's info: pictures, by path or as tensors [3, H, W] in [0, 1]


def check_pictures(name: str, samples: Tensor) -> None:
    """ShapeError unless samples are [B, 3, H, W]."""
    if samples.ndim != 4 or samples.shape[1] != 3:
        raise ShapeError(f"reward {name!r}: samples have shape {list(samples.shape)}, expected [B, 3, H, W]. Pass RGB images.")


def as_uint8(images: Tensor) -> np.ndarray:
    """round(255·x), clamped: [B, 3, H, W] in [0, 1] -> [B, H, W, 3] uint8."""
    import torch

    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def as_pil(images: Tensor) -> list[Image.Image]:
    """PIL images of pictures [B, 3, H, W] in [0, 1]."""
    from PIL import Image

    return [Image.fromarray(picture) for picture in as_uint8(images)]


def as_png(image: Image.Image) -> bytes:
    """A lossless file: JPEG would change what a reward sees."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def open_file(file: bytes) -> Image.Image:
    """A PNG or WebP file, of which only the head is read; ValueError for anything else."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(file), formats=("PNG", "WEBP"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as problem:
        raise ValueError(f"expected a PNG or WebP picture, got {problem}") from problem


def as_tensor(image: Image.Image) -> Tensor:
    """A picture [3, H, W] in [0, 1]; ValueError for a damaged file."""
    import numpy as np
    import torch

    try:
        if image.mode.startswith("I"):  # 16 bits of gray, which convert() would cut at 255
            return torch.from_numpy(np.array(image, dtype=np.float32) / 65535).repeat(3, 1, 1)
        picture = np.array(image.convert("RGB"))
    except (OSError, SyntaxError) as problem:
        raise ValueError(f"expected a whole picture, got {problem}") from problem
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255


def read_picture(path: str | Path) -> Tensor:
    """A picture file as [3, H, W] in [0, 1]; OSError or ValueError when it is none."""
    from PIL import Image

    with Image.open(path) as image:
        return as_tensor(image)
