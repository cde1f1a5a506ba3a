"""Any reward of the zoo over pictures or texts that a person brings: scores, ranks, a table to take away."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from studio.errors import StudioError
from ui import given, judged, ranked
from ui.say import refusal
from ui.shell import QUIET, header
from ui.site import Site

PICTURES, TEXTS = "Pictures", "Texts"
READS = {PICTURES: "image", TEXTS: "text"}
TYPES = {PICTURES: [".png", ".webp", ".jpg", ".jpeg", ".txt", ".jsonl"], TEXTS: [".txt", ".jsonl"]}
HINT = {
    PICTURES: "One for all, or one line for each picture in the order of names. Captions in a .txt of the same name, or in a "
    "samples.jsonl, that is dropped as well go before.",
    TEXTS: "One for all, or one line for each text. Records with a prompt keep theirs.",
}
FIRST = {PICTURES: ["clip"], TEXTS: ["length"]}
# slow models wait for each other here, and nothing else waits for them
SLOW: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "score", "concurrency_limit": 1, "show_progress": "hidden"}


def build(site: Site) -> None:
    """Lay out the page; it knows nothing of runs."""
    del site
    header("rewards")
    results = gr.State(None)
    zoo = {reward.name: reward for reward in judged.offered()}
    choices = {kind: [name for name, reward in zoo.items() if reward.reads == reads] for kind, reads in READS.items()}
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            kind = gr.Radio([PICTURES, TEXTS], value=PICTURES, label="What to score")
            files = gr.File(file_count="multiple", file_types=TYPES[PICTURES], label="Drop pictures here", height=180)
            typed = gr.Textbox(lines=5, max_lines=12, label="Texts, one a line", visible=False)
            prompts = gr.Textbox(lines=2, max_lines=8, label="Prompts", info=HINT[PICTURES])
        with gr.Column(scale=2, min_width=300):
            chosen = gr.CheckboxGroup(choices[PICTURES], value=FIRST[PICTURES], label="Rewards", elem_classes="zoo")
            told = gr.HTML(ranked.facts([zoo[name] for name in FIRST[PICTURES]]), elem_classes="facts", apply_default_css=False)
    with gr.Row(elem_classes="actions"):
        score, stop = gr.Button("Score", variant="primary"), gr.Button("Stop", interactive=False, scale=0, min_width=120)
    state = gr.HTML(elem_classes="judged", apply_default_css=False)
    table = gr.HTML(EMPTY, js_on_load=ranked.SORT, elem_classes="judged", apply_default_css=False)

    def switch(kind: str) -> list[Any]:
        drop = f"Drop {kind.lower() if kind == PICTURES else '.txt or .jsonl files'} here"
        names = FIRST[kind]
        return [
            gr.update(file_types=TYPES[kind], label=drop, value=None),
            gr.update(visible=kind == TEXTS),
            gr.update(info=HINT[kind]),
            gr.update(choices=choices[kind], value=names),
            ranked.facts([zoo[name] for name in names]),
        ]

    def work(kind: str, files: list[str] | None, typed: str, prompts: str, names: list[str]) -> Iterator[Any]:
        if not names:
            raise refusal("Check the box of one or more rewards first.", "No reward is chosen")
        with tempfile.TemporaryDirectory(prefix="studio-score-") as scratch:
            folder = Path(scratch)
            try:
                if kind == PICTURES:
                    brought = given.pictures(files or [], prompts or "", folder / "given")
                else:
                    brought = given.texts(files or [], typed or "", prompts or "", folder / "given")
            except StudioError as error:
                raise refusal(error, "These cannot be scored") from error
            known = -1
            for outcomes in judged.judge(brought, names, folder):
                now = (brought.samples, outcomes)
                fresh = len(judged.columns(outcomes))
                last = all(outcome.columns or outcome.problem for outcome in outcomes)
                said = ranked.progress(outcomes) + (_unprompted(brought) if last else "")
                yield now, said, _ranked(now) if fresh != known else gr.skip()
                known = fresh

    def sort(now: Any, event: gr.EventData) -> str:
        return _ranked(now, str(getattr(event, "by", "")))

    kind.input(switch, kind, [files, typed, prompts, chosen, told], **QUIET)
    chosen.change(lambda names: ranked.facts([zoo[name] for name in names if name in zoo]), chosen, told, **QUIET)
    buttons = [score, stop]
    begun = score.click(lambda: (gr.update(interactive=False), gr.update(interactive=True), WAIT), None, [*buttons, state], **QUIET)
    working = begun.then(work, [kind, files, typed, prompts, chosen], [results, state, table], **SLOW)
    working.then(_idle, None, buttons, **QUIET)
    working.failure(lambda: ENDED, None, state, **QUIET)  # also after Stop
    stop.click(lambda: (*_idle(), ENDED), None, [*buttons, state], cancels=[working], **QUIET)
    table.select(sort, results, table, **QUIET)


EMPTY = (
    '<div class="empty"><h2>Nothing scored yet</h2><p>Drop pictures or choose texts, choose rewards, press Score. The bundled '
    "rewards <code>clip</code> and <code>scene</code> judge the bundled world of shapes, for example the samples of a run; others "
    "fetch their weights when first used.</p></div>"
)
WAIT = '<p class="soft">Waiting for a free place …</p>'
ENDED = '<p class="soft">Not finished.</p>'


def _idle() -> tuple[Any, Any]:
    return gr.update(interactive=True), gr.update(interactive=False)


def _ranked(now: tuple[Any, Any] | None, by: str = "") -> str:
    """The table, best first by one of its columns."""
    samples, outcomes = now or ((), ())
    return ranked.table(samples, outcomes, by, prompted=len({sample.prompt for sample in samples}) > 1)


def _unprompted(brought: given.Given) -> str:
    if all(sample.prompt for sample in brought.samples):
        return ""
    return '<p class="soft">Samples without a prompt were judged with an empty one: rewards that read it mean little there.</p>'
