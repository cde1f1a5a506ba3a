"""Samples on disk: pictures or texts, one file each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor

LOSSLESS_SIDE = 64  # images up to this side are kept as PNG: compression would show


def write_samples(
    folder: Path, samples: Tensor | list[str], records: Sequence[Mapping[str, Any]], films: Mapping[str, bytes] | None = None
) -> list[dict[str, Any]]:
    """Write images [N, 3, H, W] in [0, 1] or texts into a folder -> what each record should say of its file.

    A GIF in `films` stands beside the sample of its `prompt_id`, as `film`.
    """
    if len(samples) != len(records):
        raise ShapeError(f"save_samples: got {len(samples)} samples but {len(records)} records. Give as many.")
    facts = (_save_texts if isinstance(samples, list) else _save_images)(folder, samples, records)  # type: ignore[arg-type]
    for record, fact in zip(records, facts, strict=True):
        if film := (films or {}).get(record.get("prompt_id", "")):
            fact["film"] = Path(fact["path"]).with_suffix(".gif").name
            (folder / fact["film"]).write_bytes(film)
    return facts


def _stems(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """File names without suffix: p003-s01 from prompt and sample, or the position in the list."""
    stems: list[str] = []
    for i, record in enumerate(records):
        stem = f"{i:04d}"
        if "prompt_id" in record and "sample_id" in record:
            sample = record["sample_id"]
            sample = f"s{sample:02d}" if isinstance(sample, int) else sample
            stem = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{record['prompt_id']}-{sample}")[:100]
        stems.append(f"{stem}-{i:04d}" if stem in stems else stem)
    return stems


def _save_texts(folder: Path, texts: list[str], records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    facts = [{"path": f"{stem}.txt", "text": text} for stem, text in zip(_stems(records), texts, strict=True)]
    for fact in facts:
        (folder / fact["path"]).write_text(fact["text"], encoding="utf-8")
    return facts


def _save_images(folder: Path, images: Tensor, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    from PIL import Image

    if images.ndim != 4 or images.shape[1] != 3:
        raise ShapeError(f"save_samples: images have shape {list(images.shape)}, expected [N, 3, H, W] in [0, 1].")
    height, width = images.shape[2:]
    suffix = "png" if max(height, width) <= LOSSLESS_SIDE else "webp"
    options = {} if suffix == "png" else {"quality": 90}
    pixels = (images.detach().float().nan_to_num(0.0).clamp(0, 1) * 255).round().byte()
    facts = []
    for stem, array in zip(_stems(records), pixels.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
        Image.fromarray(array).save(folder / f"{stem}.{suffix}", **options)
        facts.append({"path": f"{stem}.{suffix}", "width": width, "height": height})
    return facts
