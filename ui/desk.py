"""What the page Launch does with what a browser tells it: form, check, preview, start, the queue's buttons."""

from __future__ import annotations

import threading
from contextlib import suppress
from html import escape

import gradio as gr

from studio.config import apply_overrides, parse_yaml
from studio.errors import ConfigError, StudioError
from studio.files import replace
from studio.layout import default_name, inside
from studio.run_view import RunView
from ui import control, form, preview, recipes, waiting
from ui.draft import Answers, Checked, Draft, command_line
from ui.edit import Edit, sent, serial_of
from ui.entry import Entry
from ui.overrides import Schema, blocks, fields, overrides, structural, values, without
from ui.queue import Queue
from ui.say import done, refusal
from ui.shell import link
from ui.site import Site

TEMPLATE = "# what this recipe is for\npolicy: gaussian\nalgorithm: ppo\nenv: multigoal\ntrain: {steps: 100}\n"


class Desk:
    """Answers the events of the page; none of them waits for a run."""

    def __init__(self, site: Site) -> None:
        self.site, self.queue, self.answers = site, Queue(site.root), Answers(site.root)
        self.queue.keep(threading.Event())
        threading.Thread(target=recipes.bundled, daemon=True).start()  # read before the first page asks

    def base(self, request: gr.Request) -> Draft | None:
        """The recipe in the page's address: a bundled one, that of a run, or one to be written."""
        asked = dict(request.query_params)
        if asked.get("recipe") in recipes.bundled():
            return Draft(asked["recipe"])
        if asked.get("from"):
            with suppress(StudioError, OSError):  # no such run, or half of one
                return Draft(text=RunView.find(self.site.root, asked["from"]).file("recipe.yaml").read_text("utf-8"))
            return None
        return Draft(text=TEMPLATE) if asked.get("write") else None

    def open(self, request: gr.Request) -> tuple[str, ...]:
        """Everything that is known at once: heading, a form to come, start, check to come, result."""
        base, asked = self.base(request), dict(request.query_params)
        if base is None:
            return recipes.picker(self.site.names()[:50], asked.get("recipe") or asked.get("from")), "", "", "", ""
        title, told = base.recipe, recipes.bundled()[base.recipe].told if base.recipe else ""
        if not base.recipe:
            title = f"The recipe of {asked['from']}" if asked.get("from") else "A recipe of your own"
            told = "What you change makes a new run." if asked.get("from") else "Write it as YAML; the check says what is missing."
        top = (
            f'<div class="recipe-title"><h1>{escape(title)}</h1><a href="{link("launch")}">Choose another</a>'
            f'<p class="soft">{escape(told)}</p><a class="button to-start" href="#start" data-to-start>Check and start</a></div>'
        )
        wait = '<div class="card soft" aria-busy="true">Reading the fields of the recipe …</div>'
        command = command_line(base, "", 1, "", self.site.root)
        return top, wait, start_card(base.work, "", 0), preview.checking(), preview.recipe(base, base, None, command)

    def form(self, request: gr.Request) -> str:
        """The form of the recipe as it is."""
        base = self.base(request)
        if base is None:
            return ""
        if base.text == TEMPLATE:
            return form.text_only(TEMPLATE)
        try:
            schema = self.answers.schema(base)
        except StudioError as error:
            return f'<div class="card"><p class="problem">{escape(str(error))}</p></div>'
        return form.form(schema, schema)

    def changed_form(self, request: gr.Request, event: gr.EventData) -> str:
        """The form after a component took another's place, or one was added or removed."""
        base, serial = self.base(request), serial_of(event)
        if base is None:
            return ""
        own = self.answers.schema(base)
        try:
            return form.form(self._schema(base, Edit.of(event)), own, serial)
        except StudioError as error:
            return form.form(own, own, serial, refused=str(error))

    def result(self, request: gr.Request, event: gr.EventData) -> str:
        """The recipe that results and its command line."""
        base, serial = self.base(request), serial_of(event)
        if base is None:
            return ""
        try:
            edit = Edit.of(event)
            draft, schema = self._draft(base, edit)
            full = apply_overrides(values(schema), overrides(schema, edit.changes, {}, schema, {})) if schema else None
            command = command_line(draft, edit.name, edit.processes, edit.gpus, self.site.root)
            return preview.recipe(base, draft, full, command, serial)
        except StudioError:
            return preview.nothing(serial)

    def first_check(self, request: gr.Request) -> str:
        """The check of the recipe as it is."""
        base = self.base(request)
        return preview.checked(self._check(base, Edit()), 0) if base else ""

    def check(self, request: gr.Request, event: gr.EventData) -> str:
        """The check of the recipe with its changes."""
        base, serial = self.base(request), serial_of(event)
        if base is None:
            return ""
        try:
            found = self._check(base, Edit.of(event))
        except StudioError as error:
            found = Checked({}, [], {}, str(error).splitlines())
        return preview.checked(found, serial)

    def start(self, request: gr.Request, event: gr.EventData) -> tuple[str, str]:
        """Start what the form says, now or in its turn -> the card, with what came of it, and the queue."""
        base, serial, work = self.base(request), serial_of(event), "train"
        try:
            if base is None:
                raise ConfigError("launch: expected a recipe, got none. Choose one first.")
            work = base.work
            told = self._start(base, Edit.of(event))
            card = start_card(work, f'<p class="told-good" role="status">{escape(told)}</p>', serial)
        except StudioError as error:
            card = start_card(work, f'<p class="problem" role="alert">{escape(str(error))}</p>', serial, kept=True)
        return card, waiting.table(self.queue)

    def act(self, event: gr.EventData) -> str:
        """A button of the queue."""
        try:
            done(self._act(str(sent(event, "act")), str(sent(event, "id"))))
        except StudioError as error:
            raise refusal(error, "The queue has moved on") from error
        return waiting.table(self.queue)

    def _act(self, act: str, id: str) -> str:
        if act == "stop":
            name = next((entry.name for entry in self.queue.entries() if entry.id == id), "")
            return control.ask(RunView.find(self.site.root, name), "stop")
        if act in ("up", "down"):
            return self.queue.move(id, -1 if act == "up" else 1)
        return self.queue.cancel(id) if act == "cancel" else self.queue.forget(id)

    def _schema(self, base: Draft, edit: Edit) -> Schema:
        """Fields of the recipe with the blocks that the person has chosen."""
        own = self.answers.schema(base)
        put = {path: text for path, text in edit.structure.items() if text is not None}
        found = self.answers.schema(base.changed(structural(put, own))) if put else own
        return without(found, edit.structure.keys() - put.keys())

    def _draft(self, base: Draft, edit: Edit) -> tuple[Draft, Schema | None]:
        """What the edit makes of a recipe; no schema where it is a text."""
        if edit.text is not None:
            return Draft(text=edit.text), None
        if not edit.changes and not edit.structure:
            return base, self.answers.schema(base) if base.text != TEMPLATE else None
        schema, own = self._schema(base, edit), self.answers.schema(base)
        source = parse_yaml(base.source, "recipe")
        return base.changed(overrides(schema, edit.changes, edit.structure, own, source)), schema

    def _check(self, base: Draft, edit: Edit) -> Checked:
        try:
            draft, schema = self._draft(base, edit)
        except StudioError as error:
            return Checked({}, [], {}, str(error).splitlines())
        paths = [path for path, _ in (*fields(schema), *blocks(schema))] if schema else []
        return self.answers.check(draft, paths, edit.processes if draft.work == "train" else 1)

    def _start(self, base: Draft, edit: Edit) -> str:
        draft, _ = self._draft(base, edit)
        if edit.gpus and edit.processes > len(edit.gpus.split(",")):
            raise ConfigError(
                f"processes: expected at most one for each of the GPUs {edit.gpus}, got {edit.processes}. Name more, or take fewer."
            )
        found = self._check(base, edit)
        if not found.good:
            raise ConfigError("\n".join([*found.problems.values(), *found.others]))
        name = edit.name or default_name(apply_overrides(parse_yaml(draft.source, "recipe"), draft.overrides))
        file = draft.recipe or f".launch/{name}.yaml"
        entry = Entry(name, draft.work, file, draft.overrides, edit.processes if draft.work == "train" else 1, edit.gpus)
        self.queue.check(entry)
        if not draft.recipe:
            path = inside(self.site.root, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, draft.text)
        self.queue.add(entry, now=not edit.waits)
        if edit.waits:
            return f"{name} is in the queue."
        return f"{name} is starting; the queue above says how it goes."


def start_card(work: str, told: str, serial: int, *, kept: bool = False) -> str:
    """Name, processes, GPUs and the two buttons; `kept` leaves what was typed."""
    several = (
        '<label>Processes <input type="number" name="processes" value="1" min="1" step="1" inputmode="numeric" '
        'aria-describedby="processes-help"></label>'
        if work == "train"
        else ""
    )
    return (
        f'<section class="card start" id="start" data-serial="{serial}" data-kept="{int(kept)}"><h2>Start</h2>'
        '<label class="wide-label">Name <input type="text" name="name" maxlength="128" spellcheck="false" autocomplete="off" '
        'placeholder="from date, method and model"></label>'
        f'<div class="pair">{several}<label>GPUs <input type="text" name="gpus" placeholder="all" spellcheck="false" '
        'autocomplete="off" aria-describedby="processes-help"></label></div>'
        '<small id="processes-help">One process for each GPU. GPUs are numbers such as 0,1; queued runs that share one wait for '
        "each other.</small>"
        '<div class="pair"><button type="button" data-start="now" class="button">Start now</button>'
        f'<button type="button" data-start="queue" class="plain-button">Add to queue</button></div>{told}</section>'
    )
