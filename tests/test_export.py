"""`studio export` on a run: what a process with nothing but diffusers draws is what the trainer drew."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_train import fresh, tiny

import studio.train as loop
from flows.adapter import LORA_FILE
from studio.config import build
from studio.errors import ConfigError, RunError
from studio.export import MARK, Export, export_run, staged
from studio.recipe import Recipe
from studio.run import RunView
from studio.state import load_trained

TEXTS = ["two red circles left of a blue square", "a cyan triangle", "three green squares"]
SEEDS = [11, 12, 13]
BASE = Path(loop.__file__).parents[1] / "flows" / "shapes" / "pipeline"
RATE = "train.learning_rate=0.01"  # two steps that show

STOCK = """
import json, sys
import numpy as np, torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

base, lora, texts, seeds, steps, out = json.loads(sys.argv[1])
pipe = StableDiffusion3Pipeline.from_pretrained(base)
if lora:
    pipe.load_lora_weights(lora)
noise = torch.stack([torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(s)) for s in seeds])
call = dict(num_inference_steps=steps, guidance_scale=1.0, max_sequence_length=1, latents=noise)
for row, image in enumerate(pipe(texts, **call).images):
    image.save(f"{out}/{row}.png")
ours = [name for name in sys.modules if name.partition(".")[0] in ("studio", "flows", "rewards", "ui", "pruning")]
assert not ours, ours
"""


@pytest.fixture(scope="module", params=["lora", "full"])
def run(request, tmp_path_factory):
    """A run of two steps, with checkpoints at both and averaged weights apart from the trained ones."""
    recipe = tiny(
        f"policy.model.train={request.param}", "train.checkpointing_steps=1", "train.ema=0.9", RATE, "held_out={clip: 1.0}"
    )
    root = tmp_path_factory.mktemp("runs")
    loop.train(recipe, fresh(recipe, root))
    return RunView.open(root / "run")


def kind(view):
    return view.recipe["policy"]["model"]["train"]


def trainer_pixels(view, checkpoint, live=False):
    """uint8 [N, H, W, 3] of the trainer's own evaluation images."""
    policy = build(Recipe, view.recipe).policy.options.build(0)
    load_trained(checkpoint, policy) if live else policy.load(checkpoint / "weights")
    images = policy.images(TEXTS, SEEDS)
    return (images.permute(0, 2, 3, 1) * 255).round().byte().numpy()


def stock_pixels(folder, format, out, extra=""):
    """The same, drawn by a fresh interpreter that cannot see the studio."""
    out.mkdir()
    given = json.dumps(
        [str(BASE if format == "lora" else folder), str(folder) if format == "lora" else None, TEXTS, SEEDS, 4, str(out)]
    )
    done = subprocess.run([sys.executable, "-I", "-c", STOCK + extra, given], cwd=out, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return np.stack([np.asarray(Image.open(out / f"{row}.png")) for row in range(len(TEXTS))])


def farthest(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["ema", "live"])
@pytest.mark.parametrize("format", ["lora", "pipeline"])
def test_a_process_with_only_diffusers_draws_the_trainers_pixels(run, tmp_path, format, weights):
    if (format, kind(run)) == ("lora", "full"):
        with pytest.raises(ConfigError, match="expected a run that trains LoRA adapters.* Use --format pipeline"):
            export_run(run, Export("lora", out=tmp_path / "out"))
        assert not (tmp_path / "out").exists()
        return
    said = export_run(run, Export(format, weights, out=tmp_path / "out"))
    ours = trainer_pixels(run, run.checkpoint(), live=weights == "live")
    drawn = stock_pixels(tmp_path / "out", format, tmp_path / "drawn")
    assert farthest(drawn, ours) <= 1
    other = trainer_pixels(run, run.checkpoint(), live=weights != "live")
    assert farthest(drawn, other) > 5  # averaged and live weights are not the same, so the right ones were taken
    assert said["error"] <= 1e-5 and said["step"] == 2


def test_the_step_may_be_chosen(run, tmp_path):
    format = "lora" if kind(run) == "lora" else "pipeline"
    export_run(run, Export(format, out=tmp_path / "one", step=1))
    export_run(run, Export(format, out=tmp_path / "two"))
    assert farthest(stock_pixels(tmp_path / "one", format, tmp_path / "a"), trainer_pixels(run, run.checkpoint(1))) <= 1
    with pytest.raises(RunError, match="expected a checkpoint at step 7, got none. Complete ones: 1, 2"):
        export_run(run, Export(format, out=tmp_path / "three", step=7))
    assert json.loads((tmp_path / "one" / MARK).read_text())["step"] == 1
    assert not (tmp_path / "three").exists()


def test_an_export_is_repeated_without_leftovers_and_stays_in_its_folder(run, tmp_path):
    before = {path for path in run.folder.rglob("*") if "export" not in path.parts}
    format = "lora" if kind(run) == "lora" else "pipeline"
    first = export_run(run, Export(format, keys="kohya"))
    folder = Path(first["folder"])
    assert folder == run.folder / "export" / format
    (folder / "mine.txt").write_text("kept")
    export_run(run, Export(format))
    named = json.loads((folder / MARK).read_text())["files"]
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert on_disk == {*named, MARK, "mine.txt"}
    assert "comfyui.safetensors" not in named
    assert {path for path in run.folder.rglob("*") if "export" not in path.parts} == before
    assert str(run.folder) not in (folder / MARK).read_text()


def test_a_folder_with_other_files_is_refused_and_left_alone(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="expected an empty or new folder"):
        export_run(run, Export("pipeline", out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_link_out_of_the_run_folder_is_refused(run, tmp_path):
    moved = run.folder / "export.moved"
    (run.folder / "export").mkdir(exist_ok=True)
    (run.folder / "export").rename(moved)
    (run.folder / "export").symlink_to(tmp_path, target_is_directory=True)
    try:
        with pytest.raises(RunError, match="expected a path inside it"):
            export_run(run, Export("pipeline"))
        assert not list(tmp_path.iterdir())
    finally:
        (run.folder / "export").unlink()
        moved.rename(run.folder / "export")


def test_an_export_that_fails_leaves_the_earlier_one(tmp_path):
    with staged(tmp_path / "e") as folder:
        (folder / "a.txt").write_text("old")
        (folder / MARK).write_text('{"files": ["a.txt"]}')
    with pytest.raises(KeyError), staged(tmp_path / "e") as folder:
        (folder / "a.txt").write_text("new")
        raise KeyError
    assert (tmp_path / "e" / "a.txt").read_text() == "old"
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["a.txt", MARK]
    with pytest.raises(KeyError), staged(tmp_path / "none"):
        raise KeyError
    assert not (tmp_path / "none").exists()


def test_live_weights_are_those_of_the_optimizer(run, tmp_path):
    if kind(run) != "lora":
        return
    export_run(run, Export("lora", "live", out=tmp_path / "live"))
    state = torch.load(run.checkpoint() / "state.pt", weights_only=True)["trainable"]
    stored = load_file(tmp_path / "live" / LORA_FILE)
    ups = [value for key, value in stored.items() if "lora_B" in key]
    strength = 2.0  # alpha/rank = 64/32
    for up in ups:
        assert any(torch.equal(up, strength * p) for p in state if p.shape == up.shape)


def studio(*arguments):
    command = [sys.executable, "-m", "studio.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_command_prints_the_folder_and_the_error_after_reloading(run, tmp_path):
    if kind(run) != "lora":
        return
    root = ("--runs", str(run.folder.parent))
    done = studio("export", "run", *root, "--out", str(tmp_path / "out"), "--keys", "kohya", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 0 and said["error"] <= 1e-6 < 1e-3 < said["effect"], done.stderr
    assert {LORA_FILE, "comfyui.safetensors", "README.md", MARK} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "reloaded, the error is" in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--format", "onnx"), 2, "export.format"),
        (("--weights", "best"), 2, "export.weights"),
        (("--step", "7"), 2, "Complete ones: 1, 2"),
        (("--out", "."), 2, "expected an empty or new folder"),
    ],
    ids=["format", "weights", "step", "folder"],
)
def test_export_mistakes_are_one_message(run, tmp_path, options, code, says):
    format = () if "--format" in options else ("--format", kind(run).replace("full", "pipeline"))
    out = () if "--out" in options else ("--out", str(tmp_path / "out"))
    done = studio("export", "run", "--runs", str(run.folder.parent), *format, *options, *out)
    assert done.returncode == code and says in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_peft_folder_is_imported_by_the_command(tmp_path):
    from test_export_formats import peft_folder

    peft_folder(tmp_path / "peft")
    done = studio("import-lora", str(tmp_path / "peft"), "--base", "shapes")
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "peft" / "diffusers" / LORA_FILE), done.stderr
    assert "12 modules of a transformer, rank 4, error against PEFT" in done.stderr
    (tmp_path / "peft" / "adapter_model.safetensors").rename(tmp_path / "peft" / "adapter_model.bin")
    done = studio("import-lora", str(tmp_path / "peft"), "--out", str(tmp_path / "x"))
    assert done.returncode == 2 and "a pickle that may run code" in done.stderr and not (tmp_path / "x").exists()
    assert studio("import-lora", str(tmp_path / "nowhere")).returncode == 3
