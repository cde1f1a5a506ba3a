"""Pictures and texts that a person drops or types, laid out as `studio score` reads them, in a folder that is then removed.

Files come from gradio's upload folder only. Their names are shown but never used as paths; what records say of other files on
this machine is left out.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.errors import ConfigError
from studio.files import append
from ui.blind import pixels

PICTURES, TEXTS = 200, 2000  # most that are scored at once
TEXT_BYTES = 2 * 2**20  # of all text files together
KINDS = (".png", ".webp", ".jpg", ".jpeg")
THUMB_PX = 160
FILES = ("image", "reference", "file", "path", "files")  # fields of records that name files


@dataclass(frozen=True)
class Sample:
    """One picture or text as the table shows it."""

    name: str
    prompt: str
    text: str = ""
    picture: str = ""  # data address of a small copy
    small: bool = False  # a picture of few pixels, which are shown as such


@dataclass(frozen=True)
class Given:
    """What is to be scored, in the order in which `studio score` answers."""

    place: Path  # a folder of pictures, or a file of texts
    samples: tuple[Sample, ...]


def shown_name(path: str) -> str:
    """The name of an uploaded file, of plain characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", Path(path).name)[-80:].lstrip(".") or "file"


def lines(text: str | None) -> list[str]:
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def prompts_for(count: int, given: list[str], what: str) -> list[str]:
    """One prompt for each of `count` samples: as many as were given, or the one for all, or none."""
    if len(given) in (0, 1):
        return (given or [""]) * count
    if len(given) != count:
        raise ConfigError(
            f"prompts: expected one line for all, or one for each of the {count} {what}, got {len(given)}. Add or remove lines."
        )
    return given


def pictures(files: Sequence[str], prompts: str, folder: Path) -> Given:
    """Copy pictures into `folder` with their captions: of a .txt of the same name, of a samples.jsonl, else of `prompts`."""
    named = sorted({shown_name(file): Path(file) for file in files}.items())
    drawn = {name: file for name, file in named if file.suffix.lower() in KINDS}
    if not drawn:
        raise ConfigError(f"pictures: expected {', '.join(KINDS)} files, got none. Drop some into the box.")
    if len(drawn) > PICTURES:
        raise ConfigError(f"pictures: expected at most {PICTURES} at once, got {len(drawn)}. Take fewer, or use `studio score`.")
    records = _records([file for _, file in named if file.suffix.lower() == ".jsonl"])
    captions = {name.rpartition(".")[0]: _text(file).strip() for name, file in named if file.suffix.lower() == ".txt"}
    references = {name for record in records.values() if (name := _reference(record)) in drawn and name not in records}
    judged = [name for name in drawn if name not in references]
    own = {name: captions.get(name.rpartition(".")[0], records.get(name, {}).get("prompt")) for name in judged}
    missing = [name for name in judged if not isinstance(own[name], str)]
    filled = own | dict(zip(missing, prompts_for(len(missing), lines(prompts), "pictures without a caption"), strict=True))
    place = folder / "pictures"
    for part in (place, place / "reference"):
        part.mkdir(parents=True)
    for name in references:
        shutil.copyfile(drawn[name], place / "reference" / name)
    samples, rows = [], []
    for number, name in enumerate(judged):
        picture, side = pixels(drawn[name], THUMB_PX)
        if not picture:
            raise ConfigError(f"{name}: expected a PNG, WebP or JPEG of at most 8192 pixels a side, got none. Take it out.")
        file = f"{number:04d}{drawn[name].suffix.lower()}"
        shutil.copyfile(drawn[name], place / file)
        reference = _reference(records.get(name, {}))
        more = {"reference": f"reference/{reference}"} if reference in references else {}
        rows.append({**_plain(records.get(name, {})), "file": file, "prompt": filled[name], **more})
        samples.append(Sample(name, filled[name], picture=picture, small=side <= 128))
    append(place / "samples.jsonl", rows)
    return Given(place, tuple(samples))


def texts(files: Sequence[str], typed: str, prompts: str, folder: Path) -> Given:
    """Texts of .txt files and typed ones, one a line, and those of .jsonl files (`completion`, `prompt`, more), as one file."""
    if sum(Path(file).stat().st_size for file in files) + len(typed or "") > TEXT_BYTES:
        raise ConfigError(f"texts: expected at most {TEXT_BYTES >> 20} MB together, got more. Use `studio score` on the file.")
    found: list[dict[str, Any]] = [{"completion": line} for line in lines(typed)]
    names = [f"line {k}" for k in range(1, len(found) + 1)]
    for file in sorted(files):
        more = (
            _completions(Path(file)) if file.lower().endswith(".jsonl") else [{"completion": t} for t in lines(_text(Path(file)))]
        )
        names += [f"{shown_name(file)}:{k}" for k in range(1, len(more) + 1)]
        found += more
    if not found:
        raise ConfigError("texts: expected at least one, got none. Type one a line, or drop a .txt or .jsonl file.")
    if len(found) > TEXTS:
        raise ConfigError(f"texts: expected at most {TEXTS} at once, got {len(found)}. Take fewer, or use `studio score`.")
    missing = [record for record in found if not isinstance(record.get("prompt"), str)]
    for record, prompt in zip(missing, prompts_for(len(missing), lines(prompts), "texts without a prompt"), strict=True):
        record["prompt"] = prompt
    folder.mkdir(parents=True, exist_ok=True)
    append(folder / "texts.jsonl", found)
    samples = [Sample(name, r["prompt"], text=r["completion"]) for name, r in zip(names, found, strict=True)]
    return Given(folder / "texts.jsonl", tuple(samples))


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > TEXT_BYTES:
            raise ConfigError(f"{shown_name(file.name)}: expected at most {TEXT_BYTES >> 20} MB of text, got more. Shorten it.")
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown_name(file.name)}: expected UTF-8 text, got other bytes. Save the file as UTF-8.") from error


def _objects(file: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line."""
    found = []
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ConfigError(f"{shown_name(file.name)}:{number}: expected a JSON object, got {line[:40]!r}. Correct this line.")
        found.append(record)
    return found


def _records(files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Records of pictures by the name of their file."""
    found = [record for file in files for record in _objects(file)]
    return {shown_name(str(record.get("file") or record.get("path"))): record for record in found}


def _completions(file: Path) -> list[dict[str, Any]]:
    found = _objects(file)
    for number, record in enumerate(found, 1):
        text = record.get("completion", record.get("text"))
        if not isinstance(text, str):
            raise ConfigError(f"{shown_name(file.name)}, record {number}: expected 'completion', got none. Add it.")
        found[number - 1] = {**_plain(record), "completion": text}
    return found


def _reference(record: Mapping[str, Any]) -> str:
    return shown_name(str(record["reference"])) if record.get("reference") else ""


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a reward may be told of a sample: nothing that names files of this machine."""
    return {str(key): value for key, value in record.items() if key not in FILES}
