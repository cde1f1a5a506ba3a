"""Which forms a run's weights can leave in, and what lies in an export: files, card, license, how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from html import escape
from pathlib import Path
from typing import Any

from studio import page
from studio.chart import number
from studio.errors import ConfigError, StudioError
from studio.files import read_json
from studio.license import STATED, License, front_matter
from studio.run_view import RunView
from ui import card
from ui.index import kind_of
from ui.served import served

FORMS = {  # format -> what it is, in a sentence
    "lora": "The trained adapter alone: a small file that is loaded on top of its base, at strength 1.",
    "pipeline": "The whole pipeline with the training merged into its weights: large, and needs nothing else.",
    "text": "The whole language model with the training merged into its weights, for transformers.",
    "pruned-compact": "The narrow layers as they are: small and fast, loaded with this package or with one small file of code.",
    "pruned-dense": "The original shapes with zeros where units went: any tool loads it, it is neither smaller nor faster.",
    "pruned-depth": "A stock model with fewer blocks: smaller, faster, and any tool loads it.",
    "torchscript": "The policy as one file from observation to action, without this package.",
}
CHOICES = {
    "weights": ("ema", "live"),
    "dtype": ("float32", "bfloat16", "float16"),
    "keys": ("diffusers", "kohya"),
}
HIDDEN = (".partial", ".cache")  # an export in the making, what an upload remembers
BIG = 1_000_000  # bytes of a card that are shown


@dataclass(frozen=True)
class Fit:
    """The forms that a run can leave in, or why there are none."""

    forms: tuple[str, ...]
    why_not: str = ""
    steps: tuple[int, ...] = ()  # checkpoints to choose from


def fitting(view: RunView) -> Fit:
    """Forms in the order to offer them."""
    recipe = view.recipe
    if "criterion" in recipe:
        if not view.file("pruned/pruning.json").is_file():
            return Fit((), "It has no pruned network yet: that comes at the end of a prune run.")
        sites = recipe.get("sites") if isinstance(recipe.get("sites"), dict) else {}
        return Fit(("pruned-compact", "pruned-depth" if sites.get("kinds") == ["blocks"] else "pruned-dense"))
    steps = tuple(reversed(view.checkpoints()))
    if not steps:
        return Fit((), "It has no checkpoint yet. Press “Save now” on the page Runs while it is at work, or wait for the first.")
    policy = recipe.get("policy") if isinstance(recipe.get("policy"), dict) else {}
    model = policy.get("model") if isinstance(policy.get("model"), dict) else {}
    if model.get("random"):
        return Fit((), "It has random weights, made to measure: there is nothing to keep.")
    adapters = model.get("train") == "lora"
    kind = kind_of(recipe)
    if kind == "control":
        return Fit(("torchscript",), steps=steps)
    whole = "text" if kind == "text" else "pipeline"
    return Fit(("lora", whole) if adapters else (whole,), steps=steps)


def options(form: str, kind: str) -> tuple[str, ...]:
    """What can be chosen for a form besides the run: the options of `studio export` that change it."""
    if form.startswith("pruned-"):
        return ("dtype",)
    if form == "lora":
        return ("step", "weights", "keys") if kind == "image" else ("step", "weights")
    return ("step", "weights") if form == "torchscript" else ("step", "weights", "dtype")


def command(view: RunView, form: str, step: Any, chosen: Mapping[str, Any]) -> list[str]:
    """The words of `studio export`; ConfigError for a choice that the run does not have."""
    fit = fitting(view)
    if form not in fit.forms:
        have = ", ".join(fit.forms) or "none"
        raise ConfigError(f"export: expected a format that fits {view.name} ({have}), got {form!r}. Choose one of them.")
    words, allowed = ["export", view.folder.name, "--format", form], options(form, kind_of(view.recipe))
    if "step" in allowed and step not in (None, "newest"):
        if not str(step).isdecimal() or int(step) not in fit.steps:
            have = ", ".join(map(str, fit.steps))
            raise ConfigError(f"export: expected a step with a checkpoint ({have}), got {step!r}. Choose one of them.")
        words += ["--step", str(int(step))]
    for name, values in CHOICES.items():
        if name in allowed and chosen.get(name) is not None:
            if chosen[name] not in values:
                raise ConfigError(f"export: expected {name} of {', '.join(values)}, got {chosen[name]!r}. Choose one of them.")
            words += [f"--{name}", chosen[name]]
    return [*words, "--runs", str(view.folder.parent)]


@dataclass(frozen=True)
class Export:
    """An export folder of a run."""

    folder: Path
    facts: Mapping[str, Any]  # its export.json
    files: tuple[tuple[str, int, int], ...]  # (path in it, bytes, time of change in ns)
    text: str  # its card; empty without one

    @property
    def size(self) -> int:
        return sum(size for _, size, _ in self.files)

    @property
    def digest(self) -> str:
        """Changes when a file does."""
        return blake2b(repr(self.files).encode(), digest_size=16).hexdigest()


def exported(view: RunView, form: str) -> Export | None:
    """What was exported in this form; None when nothing was. Links are not followed."""
    if form not in FORMS:
        return None
    folder = view.file(f"export/{form}")
    mark = view.file(f"export/{form}/export.json")
    if not mark.is_file():
        return None
    facts = read_json(mark)
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if relative.parts[0] not in HIDDEN and path.is_file() and not path.is_symlink():
            stat = path.stat()
            found.append((relative.as_posix(), stat.st_size, stat.st_mtime_ns))
    about = view.file(f"export/{form}/README.md")
    text = about.read_bytes()[:BIG].decode("utf-8", "replace") if about.is_file() else ""
    return Export(folder, facts if isinstance(facts, dict) else {}, tuple(found), text)


def shown(view: RunView, form: str, export: Export) -> str:
    """An export as HTML: facts, license, files, how to load it, and its card."""
    names = {"step": "step", "weights": "weights", "base": "base", "pipeline": "pipeline", "error": "error after loading again"}
    facts = {title: export.facts[key] for key, title in names.items() if export.facts.get(key) is not None}
    facts = {title: number(value) if isinstance(value, float) else value for title, value in facts.items()}
    loads = card.snippet(export.text)
    where = f"In <code>{escape(str(export.folder))}</code>"
    head = f'<section><h2>{escape(form)}</h2><p class="soft">{where}</p>{page.facts(facts)}</section>'
    parts = [head, _files(export)]
    if export.text:
        parts.insert(1, licenses(export.text, str(export.facts.get("base") or "")))
        parts.append(f'<section><h2>Load it</h2><pre class="card">{escape(loads)}</pre></section>' if loads else "")
        read = card.render(export.text, lambda place: _picture(view, form, place))
        front = escape(card.split(export.text)[0].strip())
        above = f"<details><summary>Front matter, which the Hub reads</summary><pre>{front}</pre></details>" if front else ""
        parts.append(f'<section><h2>Model card</h2><div class="card text">{above}{read}</div></section>')
    return "".join(parts)


def _files(export: Export) -> str:
    rows = "".join(f"<tr><th scope=row>{escape(name)}</th><td>{megabytes(size)}</td></tr>" for name, size, _ in export.files)
    total = f"<tfoot><tr><th scope=row>{len(export.files)} files</th><td>{megabytes(export.size)}</td></tr></tfoot>"
    table = f'<table class="plain files"><tbody>{rows}</tbody>{total}</table>'
    folded = len(export.files) > 8
    inner = f"<details><summary>{len(export.files)} files, {megabytes(export.size)}</summary>{table}</details>" if folded else table
    return f"<section><h2>Files</h2>{inner}</section>"


def megabytes(size: int) -> str:
    """12 bytes, 3.4 kB, 5.6 MB, 7.8 GB; a thousand of one is one of the next."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if size >= 10**power:
            return f"{size / 10**power:.1f} {unit}"
    return f"{size} bytes"


def licenses(text: str, base: str) -> str:
    """The license check as HTML."""
    lines = "".join(f'<li class="{"good" if good else "warn"}">{escape(told)}</li>' for good, told in check(text, base))
    return f'<section><h2>License</h2><ul class="checks">{lines}</ul></section>'


def check(text: str, base: str) -> list[tuple[bool, str]]:
    """What a card says about its license against what its base states: (nothing to do, sentence)."""
    front = front_matter(text)
    stated = License(*(str(front[key]) if front.get(key) else None for key in ("license", "license_name", "license_link")))  # type: ignore[arg-type]
    if stated.id in ("None", "unknown"):
        return [(False, License().text)]
    found = [(True, f"The card states {stated.text.removesuffix(', as the base.')}.")]
    own = STATED.get(base)
    if own is not None and (own.id, own.name) != (stated.id, stated.name):
        found.append((False, f"{base} states {own.name or own.id}: the card says something else. Export again, or correct it."))
    else:
        found.append((True, f"It is that of {base}." if own else f"It was read from the card of {base or 'its base'}."))
    if stated.id == "other":
        found.append((False, f"It has terms of its own: read {stated.link or 'them'} before you share these weights."))
    if "non-commercial" in (stated.name or ""):
        found.append((False, "It forbids commercial use; so does this export."))
    silent = re.findall(r"^\| ([^|]+) \| (?:trained|held out)[^|]*\|[^|]*\| not stated \|$", text, re.MULTILINE)
    if silent:
        found.append((False, f"The license of the reward model is not stated for {', '.join(silent)}: find out."))
    return found


def _picture(view: RunView, form: str, place: str) -> str | None:
    """The address of a picture in the card's own folder of pictures; None for any other."""
    if not re.fullmatch(r"images/[\w-]+\.(png|webp|jpg|jpeg)", place):
        return None
    try:
        folder = view.file(f"export/{form}/images").resolve()
        file = view.file(f"export/{form}/{place}")
    except StudioError:
        return None
    if not file.is_file() or file.resolve().parent != folder:
        return None
    return served(folder, file)
