"""Export: a run's weights in a folder for other programs, its card and license, and the way to the Hub, which asks first."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.run_view import RunView
from ui import exported, job, upload
from ui.exported import CHOICES, FORMS, Fit, fitting
from ui.index import kind_of
from ui.job import refused
from ui.shell import CONTROL, QUIET, header, link, live
from ui.site import Site
from ui.upload import Upload

NO_RUNS = (
    '<div class="empty"><h2>No runs yet</h2><p>What a run has trained is exported here. Start one on the page '
    f'<a href="{link("launch")}">Launch</a>.</p></div>'
)
GO = """name => { const there = new URL(location); there.searchParams.set('run', name); location.assign(there); }"""
NEWEST = "newest"
LABELS = {"weights": "Weights", "dtype": "Stored as", "keys": "Names in the file"}
TOLD = {
    "ema": "averaged, as evaluated",
    "live": "as the optimizer left them",
    "diffusers": "of diffusers",
    "kohya": "also underscored (kohya)",
}


def build(site: Site) -> None:
    """Lay out the page."""
    header("export")
    chosen, asked = gr.State(None), gr.State(None)
    with gr.Row(elem_classes="tools"):
        run = gr.Dropdown([], label="Run", scale=3)
        about = gr.HTML(elem_classes="exports", apply_default_css=False)
    with gr.Column(visible=False) as forms:
        form = gr.Radio([], label="Format")
        explained = gr.HTML(elem_classes="exports", apply_default_css=False)
        with gr.Row(elem_classes="tools setup"):
            step = gr.Dropdown([NEWEST], value=NEWEST, label="Step")
            choices = {
                name: gr.Dropdown([(TOLD.get(value, value), value) for value in values], value=values[0], label=LABELS[name])
                for name, values in CHOICES.items()
            }
            export = gr.Button("Export", variant="primary", size="sm", min_width=120)
    working = gr.HTML(elem_classes="exports", apply_default_css=False)
    with gr.Accordion("Push to the Hub", open=True, visible=False) as pushing:
        login = gr.HTML(elem_classes="exports", apply_default_css=False)
        with gr.Row(elem_classes="tools setup"):
            repo = gr.Textbox(label="Repository", placeholder="owner/name", scale=3)
            visibility = gr.Radio(["private", "public"], value="private", label="Visibility", scale=2)
            push = gr.Button("Push …", size="sm", min_width=120)
        pushed = gr.HTML(elem_classes="exports", apply_default_css=False)
    with gr.Group(visible=False, elem_classes="modal") as dialog:
        question = gr.HTML(apply_default_css=False)
        with gr.Row():
            sure = gr.Button("Push", variant="primary", size="sm")
            cancel = gr.Button("Cancel", size="sm")
    result = gr.HTML(elem_classes="exports", apply_default_css=False)

    shown = [about, explained, working, pushing, login, pushed, result]

    def look(name: str | None, form: str | None) -> tuple[Any, ...]:
        if not name:
            return tuple(gr.skip() for _ in shown)
        try:
            return _parts(RunView.find(site.root, name), form)
        except StudioError as error:  # deleted, or a file that cannot be read
            gone = f'<p class="note">{escape(str(error))}</p>'
            return "", "", gone, gr.update(visible=False), "", "", ""

    def begin(request: gr.Request) -> list[Any]:
        name = site.chosen(request)
        nothing = [gr.update(visible=False), *_choices(None, None)]
        if name is None:
            return [None, gr.update(choices=[]), *nothing, "", "", NO_RUNS, *[gr.skip()] * 4]
        picker = gr.update(choices=site.names(), value=name)
        try:
            view = RunView.find(site.root, name)
            fit = fitting(view)
            first = next((form for form in fit.forms if exported.exported(view, form)), next(iter(fit.forms), None))
        except StudioError:  # `look` tells why
            return [name, picker, *nothing, *look(name, None)]
        return [name, picker, gr.update(visible=bool(fit.forms)), *_choices(view, first, fit), *look(name, first)]

    live(look, [chosen, form], shown)
    root = gr.context.Context.root_block
    assert root is not None
    wanted = [form, step, *choices.values()]
    root.load(begin, None, [chosen, run, forms, *wanted, *shown], **QUIET)
    run.input(None, run, None, js=GO)

    def choose(name: str, form: str) -> list[Any]:
        view = site.run(name)
        return [*_choices(view, form, fitting(view)), *look(name, form)]

    form.input(choose, [chosen, form], [*wanted, *shown], **QUIET)

    def start(name: str, form: str, step: Any, *values: Any) -> tuple[Any, ...]:
        view = site.run(name)
        with refused("Nothing was exported"):
            words = exported.command(view, form, step, dict(zip(choices, values, strict=True)))
            job.begin(view, "export", words, {"form": form})
        return look(name, form)

    export.click(start, [chosen, *wanted], shown, **CONTROL)

    def ask(name: str, form: str, repo: str, visibility: str) -> tuple[Any, ...]:
        with refused("Nothing was pushed"):
            what, found = upload.upload(site.run(name), form, repo, visibility)
        return (
            what,
            gr.update(visible=True),
            upload.question(what, found),
            gr.update(value=f"Push to {what.repo} as {what.visibility}"),
        )

    push.click(ask, [chosen, form, repo, visibility], [asked, dialog, question, sure], **CONTROL)

    def confirm(asked: Upload | None, name: str, form: str, repo: str, visibility: str) -> tuple[Any, ...]:
        with refused("Nothing was pushed"):
            upload.send(site.run(name), asked, form, repo, visibility)
        return None, gr.update(visible=False), *look(name, form)

    sure.click(confirm, [asked, chosen, form, repo, visibility], [asked, dialog, *shown], **CONTROL)
    cancel.click(lambda: (None, gr.update(visible=False)), None, [asked, dialog], **QUIET)


def _choices(view: RunView | None, form: str | None, fit: Fit | None = None) -> list[Any]:
    """Format, step and the other options as they apply to a run."""
    if view is None or fit is None or form not in fit.forms:
        return [gr.update(choices=[], value=None), *[gr.update(visible=False)] * (1 + len(CHOICES))]
    allowed = exported.options(form, kind_of(view.recipe))
    steps = gr.update(choices=[NEWEST, *map(str, fit.steps)], value=NEWEST, visible="step" in allowed)
    return [gr.update(choices=list(fit.forms), value=form), steps, *(gr.update(visible=name in allowed) for name in CHOICES)]


def _parts(view: RunView, form: str | None) -> tuple[Any, ...]:
    """What the page says of a run and a format."""
    fit, name = fitting(view), view.folder.name
    about = f'<p class="of-run"><a href="{link("run", run=name)}">{escape(name)}</a> <span class="soft">{_kind(view)}</span></p>'
    if form not in fit.forms:
        none = f'<div class="empty"><h2>Nothing to export</h2><p>{escape(fit.why_not)}</p></div>' if fit.why_not else ""
        return about, "", none, gr.update(visible=False), "", "", ""
    terms = "".join(f"<div{' class=now' if each == form else ''}><dt>{each}</dt><dd>{FORMS[each]}</dd></div>" for each in fit.forms)
    found = exported.exported(view, form)
    export, push = job.look(view, "export"), job.look(view, "push")
    working = sent = ""
    if export and export.about.get("form") == form:
        done = found is not None and (found.folder / "export.json").stat().st_mtime >= export.started
        working = job.told(
            export, f"studio export {name} --format {form}", "<p>It was loaded again and compared.</p>" if done else ""
        )
    if push and push.about.get("form") == form:
        to = f"{push.about.get('repo')} ({push.about.get('visibility')})"
        there = push.last if not push.working and push.last.startswith(("https://", "http://")) else ""
        address = f'<p><a href="{escape(there)}" target="_blank" rel="noopener noreferrer">{escape(there)}</a></p>' if there else ""
        sent = job.told(push, f"Upload to {to}", address)
    card = bool(found and found.text)
    if found is None:
        missing = "" if export and export.working else f'<p class="soft">Nothing was exported as {escape(form)} yet.</p>'
        return about, f"<dl>{terms}</dl>", working + missing, gr.update(visible=False), "", "", ""
    no_card = "" if card else '<p class="soft">This form has no model card, so it is not pushed: take the folder as it is.</p>'
    shown = no_card + exported.shown(view, form, found)
    return about, f"<dl>{terms}</dl>", working, gr.update(visible=card), _login(), sent, shown


def _kind(view: RunView) -> str:
    status = view.status
    return escape(f"{kind_of(view.recipe)}, {status['label']}, step {status['step']}")


def _login() -> str:
    """Whether an upload would find a login; the token itself is never shown and never typed here."""
    from huggingface_hub import get_token

    told = (
        "A login was found on this machine" if get_token() else "No login was found: run <code>hf auth login</code> in a terminal"
    )
    return (
        f'<p class="soft">{told}. The token is taken from <code>HF_TOKEN</code> or from <code>hf auth login</code> and is never '
        "typed into this page. Nothing is uploaded before you confirm repository and visibility.</p>"
    )
