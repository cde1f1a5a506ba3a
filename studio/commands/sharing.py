"""Commands that take a trained model elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from studio.commands.shared import HERE, Json, RunName, Runs, app, say
from studio.errors import ConfigError


@app.command()
def export(
    run: RunName,
    format: Annotated[
        str,
        typer.Option(
            "--format", help="lora, pipeline; of a prune run pruned-depth, -dense, -compact; of a control run torchscript."
        ),
    ] = "lora",
    weights: Annotated[str, typer.Option("--weights", help="ema (the averaged ones) or live.")] = "ema",
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default: export/FORMAT in the run.")] = None,
    step: Annotated[int | None, typer.Option("--step", help="Checkpoint; default: the newest.")] = None,
    keys: Annotated[
        str, typer.Option("--keys", help="diffusers, or kohya for a second file with underscored names.")
    ] = "diffusers",
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of the trained part of a pipeline: float32, bfloat16, float16.")
    ] = "float32",
    runs: Runs = HERE,
    as_json: Json = False,
) -> None:
    """Trained weights as files that diffusers and ComfyUI load, with a model card."""
    from studio.config import build
    from studio.export import Export, export_run
    from studio.run import RunView

    given = {"format": format, "weights": weights, "step": step, "out": out, "keys": keys, "dtype": dtype}
    facts = export_run(RunView.find(runs, run), build(Export, given, where="export"))
    size = facts.get("parameters", {})
    what = "{after:,} of {before:,} parameters".format(**size) if size else f"step {facts['step']}, {weights} weights"
    say(f"{what}; reloaded, the error is {facts['error']:.2g}")
    print(json.dumps(facts) if as_json else facts["folder"])


@app.command(name="import-lora")
def import_lora(
    folder: Annotated[Path, typer.Argument(help="Folder with adapter_config.json and adapter_model.safetensors.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default: FOLDER/diffusers.")] = None,
    keys: Annotated[
        str, typer.Option("--keys", help="diffusers, or kohya for a second file with underscored names.")
    ] = "diffusers",
    base: Annotated[str | None, typer.Option("--base", help="A model to compare both on: Hub id, folder or bundled name.")] = None,
) -> None:
    """A PEFT folder of another trainer as a file that diffusers and ComfyUI load at the trained strength."""
    from flows.import_lora import import_lora as convert
    from flows.load import Model, load_backbone

    if keys not in ("diffusers", "kohya"):
        raise ConfigError(f"import-lora: expected --keys diffusers or kohya, got {keys!r}. Use one of them.")
    model = None if base is None else load_backbone(Model(id=base))
    found = convert(folder, out or folder / "diffusers", underscored=keys == "kohya", base=model)
    checked = "not compared with a base" if found.error is None else f"error against PEFT {found.error:.2g}"
    say(f"{found.modules} modules of a {found.component}, rank {found.rank}, {checked}")
    print(found.file)


@app.command()
def push(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_FOLDER", help="A run with one export, or an export folder.")],
    repo: Annotated[str, typer.Argument(help="owner/name on the Hub.")],
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see it.")] = True,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    runs: Runs = HERE,
) -> None:
    """Upload an export to the Hub, after a question that names the repository; continues where it stopped."""
    from studio.push import Push, find_folder
    from studio.push import push as upload

    def confirm(question: str) -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            raise ConfigError(f"push: expected an answer or --yes, got no terminal. {question} Nothing was uploaded.")
        return typer.confirm(question, err=True)

    place = upload(find_folder(runs, source), Push(repo, private), confirm)
    if place is None:
        say("nothing was uploaded")
        raise typer.Exit(1)
    print(place)
