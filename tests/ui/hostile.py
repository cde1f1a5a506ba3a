"""A folder of runs by somebody who wants to run code in the browser of whoever looks at it, or to read their files."""

from __future__ import annotations

import json
import os
from pathlib import Path

from exports import make_export
from made_runs import RECIPES, make_run
from prunes import make_prune

from studio.config import to_yaml
from studio.files import append

SECRET = "SECRET-7261"
EVIL = '"><img class="evil" src=x onerror="window.evil=1"><script class="evil">window.evil=1</script>\''
SIGN = 'img class="evil"'  # of the text, where it is shown as text
NAMES = ("image-run", "text-run", "control-run", "prune-run")


def make_hostile(folder: Path) -> Path:
    """Runs of every branch in folder/runs, and beside it what must not be read or changed."""
    root, outside = folder / "runs", folder / "outside"
    outside.mkdir()
    for name in ("status.json", "recipe.yaml", "summary.json", "metrics.jsonl", "picture.png"):
        (outside / name).write_text(f'{{"state": "{SECRET}"}}')
    for kind in ("image", "text", "control"):
        run = make_run(root, f"{kind}-run", kind)
        _fill(run.folder, RECIPES[kind])
    pruned = make_prune(root, "prune-run", kept=0.8, error=0.1, reward=0.7)
    summary = json.loads((pruned.folder / "summary.json").read_text())
    summary["stages"][1]["name"] = summary["groups"][0]["name"] = summary["groups"][1]["kind"] = EVIL
    summary["before"][EVIL], summary["after"][EVIL] = 0.5, 0.6
    for stage in summary["stages"]:
        stage["rewards"][EVIL] = 0.5
    (pruned.folder / "summary.json").write_text(json.dumps(summary))
    _fill(pruned.folder, {"criterion": {"name": EVIL}, "target": {EVIL: 0.5}, "model": {"id": EVIL}})
    odd = root / "<img class=evil src=x onerror=alert(1)>"
    odd.mkdir()
    (odd / "status.json").write_text((root / "image-run" / "status.json").read_text())
    run = make_run(root, "exported", "image")
    _fill(run.folder, RECIPES["image"])
    (run.folder / "checkpoints" / "000020").mkdir()
    (run.folder / "checkpoints" / "000020" / "COMPLETE").touch()
    make_export(
        run,
        "pipeline",
        text=f"---\nlicense: {json.dumps(EVIL)}\n---\n\n# {EVIL}\n\n| {EVIL} |\n|---|\n| {EVIL} |\n\n- {EVIL}\n",
        base=EVIL,
    )
    for name in ("weights.safetensors", "secret.png"):
        (run.folder / "checkpoints" / "000020" / name).write_text(SECRET)
    samples = run.folder / "samples" / "000000"
    (samples / "page.html").write_text(f"<script>{SECRET}</script>")
    os.symlink(outside / "picture.png", samples / "out.png")
    os.symlink(outside, root / "linked")
    return root


def _fill(folder: Path, recipe: dict) -> None:
    """Text that would be markup, wherever a run has text."""
    (folder / "recipe.yaml").write_text(to_yaml({**recipe, "note": EVIL, EVIL: {"deep": EVIL}}))
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "reason": EVIL, "error": EVIL, "label": EVIL}))
    (folder / "env.json").write_text(json.dumps({"device": EVIL, "command": [EVIL], "versions": {EVIL: EVIL}}))
    append(folder / "events.jsonl", [{"t": 1.0, "kind": kind, "message": EVIL, EVIL: EVIL} for kind in ("warning", "alarm", EVIL)])
    append(folder / "metrics.jsonl", [{"t": 1.0, "step": step, f"reward/{EVIL}": 0.5, f"sample/{EVIL}": 0.1} for step in (1, 20)])
    for name in ("launcher.log", "rank0.log"):
        (folder / "logs" / name).write_text(f"{EVIL}\n")
    for table in folder.glob("samples/*/samples.jsonl"):
        records = [json.loads(line) for line in table.read_text().splitlines()]
        table.write_text("")
        for record in records:
            text = {"text": EVIL} if "text" in record else {}
            record |= {"prompt": EVIL, "rewards": {"scene": 0.5, EVIL: 0.4}, "guards": {EVIL: 0.1}, **text}
        append(table, records)
