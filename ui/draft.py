"""What is about to be started: a recipe with changes, what `studio check` and `studio schema` say of it, its command line."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import subprocess
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from studio.config import parse_yaml
from studio.errors import ConfigError, StudioError
from studio.files import replace
from studio.recipe import recipe_names, recipe_source
from ui import spawn
from ui.overrides import Schema

KEPT = 64  # answers that are remembered
PATIENCE_S = 120.0
KEY = re.compile(r"[A-Za-z_][\w+-]*(\.[A-Za-z_][\w+-]*)*")  # of an override; one that began with '-' would be an option


@dataclass(frozen=True)
class Draft:
    """A bundled recipe by name, or a text of one's own, with overrides."""

    recipe: str = ""  # bundled name; empty = text
    text: str = ""
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for override in self.overrides:
            if not KEY.fullmatch(override.partition("=")[0]):
                raise ConfigError(f"override {override!r}: expected key=value such as train.steps=40. Correct the key.")

    @property
    def source(self) -> str:
        """The recipe as YAML, without the overrides."""
        return recipe_source(self.recipe, self.work) if self.recipe else self.text

    @property
    def work(self) -> str:
        """train or prune: a prune recipe names a criterion."""
        if self.recipe:
            return "prune" if self.recipe in recipe_names("prune") else "train"
        return "prune" if "criterion" in parse_yaml(self.text, "recipe") else "train"

    def changed(self, overrides: Iterable[str]) -> Draft:
        return Draft(self.recipe, self.text, tuple(overrides))


class Checked(NamedTuple):
    """What `studio check` said: facts and warnings, or problems by the field they belong to."""

    facts: dict[str, Any]
    warnings: list[str]
    problems: dict[str, str]
    others: list[str]  # problems of no one field

    @property
    def good(self) -> bool:
        return not self.problems and not self.others


@dataclass
class Answers:
    """Asks `studio` about drafts, in processes of their own; the same question is asked once."""

    root: Path
    _kept: OrderedDict[tuple, tuple[int, str, str]] = field(default_factory=OrderedDict)
    _asking: dict[tuple, threading.Lock] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def schema(self, draft: Draft) -> Schema:
        """`studio schema`; ConfigError for what it refuses."""
        code, said, wrong = self._answer("schema", draft)
        if code:
            raise ConfigError(message(wrong))
        return json.loads(said)

    def check(self, draft: Draft, paths: Iterable[str], processes: int = 1) -> Checked:
        """`studio check`; `paths` are the fields that a problem may be shown beside."""
        try:
            code, said, wrong = self._answer("check", draft, "--json", *(["--gpus", str(processes)] if processes > 1 else []))
        except StudioError as error:
            code, said, wrong = 2, "", str(error)
        if code:
            return Checked({}, [], *by_field(message(wrong), paths))
        facts = json.loads(said)
        return Checked(facts, facts.pop("warnings", []), {}, [])

    def _answer(self, command: str, draft: Draft, *options: str) -> tuple[int, str, str]:
        source = draft.source
        key = (command, draft, source, options)
        with self._guard:
            turn = self._asking.setdefault(key, threading.Lock())
        with turn:  # a second one who wants to know the same waits for the first
            if key not in self._kept:
                parse_yaml(source, "recipe")
                with written(self.root, draft) as recipe:
                    self._kept[key] = self._process([command, recipe, *draft.overrides, *options], recipe)
            found = self._kept[key]
        with self._guard:
            self._asking.pop(key, None)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found

    def _process(self, words: Sequence[str], recipe: str) -> tuple[int, str, str]:
        try:
            code, said, wrong = spawn.answer(words, timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            return 1, "", f"studio {words[0]}: expected an answer within {PATIENCE_S:g} s, got none. Run it in a terminal."
        return code, said, wrong.replace(recipe, "recipe") if recipe.endswith(".yaml") else wrong


@contextmanager
def written(root: Path, draft: Draft) -> Iterator[str]:
    """What to call the recipe on a command line: its name, or a file that is there for so long."""
    if draft.recipe:
        yield draft.recipe
        return
    path = root / ".launch" / f"check-{secrets.token_hex(6)}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob("check-*.yaml"):  # by an interface that was ended meanwhile
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > 2 * PATIENCE_S:
                left.unlink()
    replace(path, draft.text)
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


def message(wrong: str) -> str:
    """What a command said on stderr, without the name of the error; of a traceback only the end."""
    lines = [line for line in wrong.strip().splitlines() if line.strip()]
    starts = [k for k, line in enumerate(lines) if re.match(r"[A-Z]\w*Error: ", line)]
    lines = lines[starts[-1] :] if starts else lines[-3:]
    return "\n".join([re.sub(r"^[A-Z]\w*Error: ", "", lines[0]), *lines[1:]]) if lines else "It ended without a word. Try again."


def by_field(said: str, paths: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Problems, one per line, by the field or block that each begins with; those that begin with none."""
    known = sorted(set(paths), key=len, reverse=True)
    found, others = {}, []
    for line in said.splitlines():
        match = re.match(r"(?:override ['\"])?(?:recipe\.)?([A-Za-z_][\w.+-]*)(?:\[\d+\])?(?:=.*?['\"])?: ", line)
        named = match[1] if match else ""
        place = next((path for path in known if named == path or named.startswith(f"{path}.")), None)
        place = place or next((path for path in known if named and path.endswith(f".{named}")), None)
        if place is None:
            others.append(line)
        else:
            found[place] = "\n".join(filter(None, [found.get(place), line]))
    return found, others


def command_line(draft: Draft, name: str, processes: int, gpus: str, root: Path) -> str:
    """The command that starts a draft, as a shell would take it."""
    file = draft.recipe or str(root / ".launch" / f"{name or 'NAME'}.yaml")
    words = ["studio", draft.work, file, *draft.overrides]
    words += ["--gpus", str(processes)] if processes > 1 else []
    words += ["--name", name] if name else []
    return (f"CUDA_VISIBLE_DEVICES={gpus} " if gpus else "") + shlex.join([*words, "--runs", str(root)])
