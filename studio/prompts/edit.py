"""Editing tasks: a folder with pictures and a metadata.jsonl that says what to do with each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.errors import ConfigError
from studio.prompts.order import Shuffled
from studio.prompts.read import key_of, read_records
from studio.prompts.select import Lists, Select, first, lists
from studio.types import Prompts

METADATA = "metadata.jsonl"
PICTURES = {"file_name": "image", "image": "image", "reference": "reference"}  # field of a record -> field of info
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class EditPrompts:
    """Folders of pictures with a metadata.jsonl: {"file_name", "prompt"} and perhaps "reference", a picture to come close to.

    info["image"] and info["reference"] are the paths of files that lie inside the folder.
    """

    train: str
    test: str | None = None  # another folder; None = the tasks that select.test_fraction holds out of train
    select: Select = field(default_factory=Select)

    def check(self) -> list[str]:
        return self._lists().check()

    def build(self, seed: int) -> Shuffled:
        return self._lists().build(seed)

    def held_out(self, count: int) -> Prompts:
        """The first `count` test tasks."""
        return first(self._lists().held_out(), count)

    def _lists(self) -> Lists:
        return lists(read_edits, self.train, self.test, self.select)


def read_edits(folder: str) -> Prompts:
    """All tasks of a folder. A task's key is of its text and its picture: one instruction may go with many pictures."""
    root = Path(folder).expanduser()
    texts, keys, infos = [], [], []
    for number, record in read_records(root / METADATA, "prompt"):
        where = f"recipe.prompts: {root / METADATA}:{number}"
        text = str(record.pop("prompt"))
        pictures = {into: _picture(root, record.pop(name), where) for name, into in PICTURES.items() if name in record}
        if "image" not in pictures:
            raise ConfigError(f"{where}: expected a 'file_name', got none. Name the picture to edit, relative to the folder.")
        texts.append(text)
        keys.append(key_of(text, Path(pictures["image"]).relative_to(root).as_posix()))
        infos.append(record | pictures)
    if not texts:
        raise ConfigError(f"recipe.prompts: {root / METADATA}: expected at least one task, got an empty file. Add a line.")
    return Prompts(texts, keys, infos)


def _picture(root: Path, name: Any, where: str) -> str:
    """The path of a picture in the folder; one that leads out of it, by `..`, an absolute path or a link, is refused."""
    path = root / str(name)
    if not isinstance(name, str) or not path.resolve().is_relative_to(root.resolve()) or ".." in Path(name).parts:
        raise ConfigError(f"{where}: expected a picture inside the folder, got {name!r}. Paths and links may not lead out of it.")
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        raise ConfigError(f"{where}: expected a picture ({', '.join(SUFFIXES)}), got {name!r}, which is none. Correct the name.")
    return str(path)
