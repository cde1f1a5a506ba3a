"""Votes as a data set of preferences: prompt, chosen and rejected, one pair a line."""

from __future__ import annotations

import secrets
import shlex
import shutil
import time
import zipfile
from collections.abc import Sequence
from hashlib import blake2b
from html import escape
from pathlib import Path
from typing import NamedTuple

from studio.errors import RunError
from studio.files import append, as_json, disk
from studio.layout import inside
from ui.votes import Vote

FOLDER, FILE, PICTURES = "preferences", "preferences.jsonl", "pictures"
KINDS = (".png", ".webp", ".jpg", ".jpeg")


class Exported(NamedTuple):
    """A data set, and what did not go into it."""

    folder: Path
    pairs: int
    undecided: int  # pairs with as many votes for one as for the other
    lost: int  # pairs whose pictures are gone


def decided(votes: Sequence[Vote]) -> tuple[list[tuple[str, str, str]], int]:
    """(prompt, chosen, rejected) of every pair that has more votes for one than for the other, and how many have not."""
    balance: dict[tuple[str, str, str], int] = {}
    for vote in votes:
        low, high = sorted((vote["chosen"], vote["rejected"]))
        if low == high:  # both sides drew the same text
            continue
        pair = (vote["prompt"], low, high)
        balance.setdefault(pair, 0)
        if not vote.get("tie"):
            balance[pair] += 1 if vote["chosen"] == low else -1
    kept = [(prompt, low, high) if votes > 0 else (prompt, high, low) for (prompt, low, high), votes in balance.items() if votes]
    return kept, len(balance) - len(kept)


def export(root: Path, votes: Sequence[Vote], kind: str) -> Exported:
    """Write the votes about texts or about pictures to a new folder under `preferences`.

    Lines are {"prompt", "chosen", "rejected"}: texts, or paths of pictures from the folder, which holds a copy of each.
    """
    kept, undecided = decided([vote for vote in votes if vote["kind"] == kind])
    if not kept:
        raise RunError(f"votes: expected a pair of {kind}s with more votes for one side, got none. Vote on some pairs first.")
    folder = inside(root, f"{FOLDER}/{time.strftime('%Y%m%d-%H%M%S')}-{kind}-{secrets.token_hex(2)}")
    lines, lost = [], 0
    with disk(folder):
        folder.mkdir(parents=True)
        for prompt, chosen, rejected in kept:
            pair = [chosen, rejected] if kind == "text" else [_copied(root, path, folder) for path in (chosen, rejected)]
            if None in pair:
                lost += 1
                continue
            if pair[0] == pair[1]:  # two files of the same picture
                undecided += 1
                continue
            lines.append({"prompt": prompt, "chosen": pair[0], "rejected": pair[1]})
        append(folder / FILE, lines)
    return Exported(folder, len(lines), undecided, lost)


def _copied(root: Path, path: str, folder: Path) -> str | None:
    """The picture's path in the data set, named by what it shows; None where the file is gone or no sample of a run."""
    parts = Path(path).parts
    if parts[1:2] != ("samples",) or Path(path).suffix.lower() not in KINDS:
        return None
    try:
        data = inside(root / parts[0] / "samples", "/".join(parts[2:])).read_bytes()
    except (OSError, RunError):
        return None
    name = f"{PICTURES}/{blake2b(data, digest_size=8).hexdigest()}{Path(path).suffix.lower()}"
    (folder / PICTURES).mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return name


def packed(made: Exported, kind: str, scratch: Path) -> Path:
    """The data set as one file in `scratch`, to be downloaded: the lines of texts, all files with pictures as a zip."""
    name = made.folder.name
    if kind == "text":
        return Path(shutil.copyfile(made.folder / FILE, scratch / f"{name}.jsonl"))
    with zipfile.ZipFile(scratch / f"{name}.zip", "w") as archive:
        for file in sorted(made.folder.rglob("*")):
            archive.write(file, f"{name}/{file.relative_to(made.folder)}")
    return scratch / f"{name}.zip"


def told(made: Exported, kind: str, recipe: Path) -> str:
    """Where the data set lies, what is in it, and what reads it, as HTML; `recipe` is that of a run that was compared."""
    file = escape(str(made.folder / FILE))
    left = {"without a majority": made.undecided, "without their files": made.lost}
    missing = ", ".join(f"{count} {why}" for why, count in left.items() if count)
    path = as_json(str(made.folder / FILE))  # quoted as YAML wants it
    prompts = escape(shlex.quote(f"prompts={{name: file, train: {path}, test: {path}}}"))
    use = (
        f"<p>Train on it with DPO (or ipo, slic):</p><pre>studio train {escape(shlex.quote(str(recipe)))} algorithm=dpo \\\n"
        f"  {prompts} \\\n"
        "  policy.sampling.pairs=true train.group_size=2 rewards={}</pre>"
        if kind == "text"
        else '<p class="soft">No objective of this version learns from pairs of pictures: the data set is for other trainers, and '
        "for judging rewards. Paths in it are relative to its folder.</p>"
    )
    title = f"{made.pairs} pair{'s' if made.pairs > 1 else ''} exported"
    lines = "One JSON object a line with <code>prompt</code>, <code>chosen</code> and <code>rejected</code>."
    left_out = f"Left out: {missing}." if missing else ""
    return f'<div class="card"><h2>{title}</h2><p class="soft">{lines} {left_out}</p><p><code>{file}</code></p>{use}</div>'
