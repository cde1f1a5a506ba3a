"""Any reward over a folder of images: captions from samples.jsonl, from a .txt beside each image, or one for all.

A line of samples.jsonl names its image as `file` or `path`, and its `prompt`; all else in it is what rewards may need,
such as `target_text`, GenEval's `include`, or the path of a `reference` picture relative to the folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from rewards.pictures import read_picture
from studio.errors import ConfigError
from studio.types import Prompts

KINDS = (".png", ".webp", ".jpg", ".jpeg")


def read_folder(folder: Path, prompt: str | None) -> tuple[list[str], list[Tensor], Prompts]:
    """Names of the image files of a folder, sorted, the images as [3, H, W] in [0, 1], each of its own size, with their prompts."""
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in KINDS) if folder.is_dir() else []
    if not files:
        raise ConfigError(f"{folder}: expected a folder of images ({', '.join(KINDS)}), got none. Name another folder.")
    pictures = [_picture(file) for file in files]
    records = _records(folder)
    texts = _captions(folder, files, prompt, records)
    return (
        [file.name for file in files],
        pictures,
        Prompts(texts, texts, [_info(folder, records.get(file.name, {})) for file in files]),
    )


def by_size(pictures: list[Tensor]) -> list[list[int]]:
    """Positions of the images that have one size, a list for each size, in order of appearance."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, picture in enumerate(pictures):
        places.setdefault(tuple(picture.shape), []).append(place)
    return list(places.values())


def _picture(file: Path) -> Tensor:
    try:
        return read_picture(file)
    except (OSError, ValueError) as problem:
        raise ConfigError(f"{file}: expected a whole picture, got: {problem}. Save it again or take it out.") from problem


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    """The lines of samples.jsonl by the name of their image."""
    if not (folder / "samples.jsonl").is_file():
        return {}
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return {Path(str(record.get("path") or record.get("file"))).name: record for record in map(json.loads, lines)}


def _info(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    info = {name: value for name, value in record.items() if name not in ("file", "path", "prompt")}
    return info | {"reference": str(folder / info["reference"])} if "reference" in info else info


def _captions(folder: Path, files: list[Path], prompt: str | None, records: dict[str, dict[str, Any]]) -> list[str]:
    if prompt is not None:
        return [prompt] * len(files)
    listed = {name: record["prompt"] for name, record in records.items() if "prompt" in record}
    for file in files:
        if file.with_suffix(".txt").is_file():
            listed[file.name] = file.with_suffix(".txt").read_text(encoding="utf-8").strip()
    missing = [file.name for file in files if file.name not in listed]
    if missing:
        raise ConfigError(
            f"{folder}: expected a caption for every image, got none for {missing[0]} and {len(missing) - 1} more. Write "
            f"{Path(missing[0]).stem}.txt beside it, a samples.jsonl, or pass --prompt."
        )
    return [listed[file.name] for file in files]
