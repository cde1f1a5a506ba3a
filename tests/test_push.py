"""`studio push` against a Hub on this machine: nothing goes out unasked, what was there stays, what is loaded is what was sent."""

import json
import os
import subprocess
import sys

import pytest
from fake_hub import Repo, fake_hub
from safetensors.torch import load_file
from test_train import fresh, tiny

import studio.train as loop
from flows.adapter import LORA_FILE
from studio.errors import ConfigError, ExportError
from studio.export import Export, export_run
from studio.push import Push, check_folder, push
from studio.run import RunView

REPO = "me/shapes-lora"


@pytest.mark.parametrize("repo", ["lora", "me/-lora", "me/lora.git", ".me/lora", "me/lo--ra", "a" * 60 + "/" + "b" * 97])
def test_a_name_that_the_hub_refuses_is_refused_before_the_question(tmp_path, repo):
    (tmp_path / "README.md").write_text("card")
    with pytest.raises(ConfigError, match="push: expected owner/name"):
        push(tmp_path, Push(repo), lambda text: pytest.fail(text))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained adapter with its export."""
    recipe = tiny("policy.model.train=lora", "train.learning_rate=0.01")
    root = tmp_path_factory.mktemp("runs")
    loop.train(recipe, fresh(recipe, root))
    view = RunView.open(root / "run")
    export_run(view, Export("lora"))
    return view


@pytest.fixture
def hub(tmp_path):
    with fake_hub() as there:
        yield there


def studio(hub, tmp_path, *arguments, **more):
    home = {**os.environ, **hub.environment(str(tmp_path / "home"))}
    command = [sys.executable, "-m", "studio.cli", *arguments]
    return subprocess.run(command, env=home | more, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)


def upload(hub, tmp_path, run, *options, **more):
    return studio(hub, tmp_path, "push", "run", REPO, "--runs", str(run.folder.parent), *options, **more)


LOAD = """
import sys, torch
from diffusers import StableDiffusion3Pipeline
pipe = StableDiffusion3Pipeline.from_pretrained(sys.argv[1])
pipe.load_lora_weights(sys.argv[2], weight_name="pytorch_lora_weights.safetensors")
ups = [p for name, p in pipe.transformer.named_parameters() if "lora_B" in name]
print(len(ups), sum(p.abs().sum().item() for p in ups) > 0)
"""


@pytest.mark.slow
def test_a_push_arrives_is_not_repeated_and_loads_by_its_name(hub, tmp_path, run):
    done = upload(hub, tmp_path, run, "--yes")
    assert done.returncode == 0 and done.stdout.strip() == f"{hub.url}/{REPO}", done.stderr
    folder = run.folder / "export" / "lora"
    sent = hub.repos[REPO]
    assert sent.private is True
    assert sent.files[LORA_FILE] == (folder / LORA_FILE).read_bytes()
    assert sent.files["README.md"] == (folder / "README.md").read_bytes()
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(sent.files)
    again = upload(hub, tmp_path, run, "--yes")
    assert again.returncode == 0 and sum(map(len, sent.commits)) == len(sent.files)  # no content a second time
    base = str(loop.__file__).replace("studio/train.py", "flows/shapes/pipeline")
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, base, REPO],
        env={**os.environ, **hub.environment(str(tmp_path / "other"))}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split() == ["47", "True"]  # eight layers of six blocks, less the one that the last block lacks


def test_without_a_yes_nothing_is_even_asked_of_the_hub(hub, tmp_path, run):
    done = upload(hub, tmp_path, run)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert REPO in done.stderr and "as a private model repository? Nothing was uploaded" in done.stderr
    assert hub.requests == [] and hub.repos == {}


@pytest.mark.parametrize("private", [True, False])
def test_the_question_names_repository_and_visibility_and_no_is_no(run, private):
    asked = []
    answer = push(run.folder / "export" / "lora", Push(REPO, private), lambda text: asked.append(text) or False)
    assert answer is None
    assert REPO in asked[0] and ("as a private" if private else "as a public") in asked[0]


def test_a_repository_of_the_other_visibility_is_refused_before_any_file(hub, tmp_path, run):
    hub.repos[REPO] = Repo(private=False)
    done = upload(hub, tmp_path, run, "--yes")
    assert done.returncode == 2 and "exists and is public. Say --public" in done.stderr
    assert hub.repos[REPO].files == {} and not [line for line in hub.requests if "commit" in line]
    assert upload(hub, tmp_path, run, "--yes", "--public").returncode == 0
    assert LORA_FILE in hub.repos[REPO].files


@pytest.mark.slow
def test_a_whole_pipeline_is_pushed_from_its_folder_and_loads_by_its_name(hub, tmp_path, run):
    export_run(run, Export("pipeline", out=tmp_path / "whole"))
    done = studio(hub, tmp_path, "push", str(tmp_path / "whole"), "me/whole", "--public", "--yes")
    assert done.returncode == 0, done.stderr
    code = "import sys\nfrom diffusers import DiffusionPipeline\npipe = DiffusionPipeline.from_pretrained('me/whole')\n"
    code += "print(type(pipe).__name__, round(pipe.transformer.proj_out.weight.abs().sum().item(), 4))"
    environment = {**os.environ, **hub.environment(str(tmp_path / "other"))}
    loaded = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    stored = load_file(tmp_path / "whole" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert loaded.stdout.split() == ["StableDiffusion3Pipeline", str(round(stored["proj_out.weight"].abs().sum().item(), 4))], (
        loaded.stderr
    )
    assert hub.repos["me/whole"].private is False


@pytest.mark.slow
def test_a_push_that_broke_continues(hub, tmp_path, run):
    hub.fail = 50
    done = upload(hub, tmp_path, run, "--yes")
    assert done.returncode == 3 and "HTTP 500. Push again: it continues" in done.stderr and "hf_x" not in done.stderr
    hub.fail = 0
    assert upload(hub, tmp_path, run, "--yes").returncode == 0
    assert LORA_FILE in hub.repos[REPO].files


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE=1. Unset it"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "expected a connection to the Hub"),
    ],
    ids=["offline", "no server"],
)
def test_no_hub_is_a_missing_error(hub, tmp_path, run, more, says):
    done = upload(hub, tmp_path, run, "--yes", **more)
    assert done.returncode == 3 and says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["me", "../me/x", "me/x/y", "me/a--b", "me/a b"])
def test_names_that_are_no_repository_are_refused(run, name):
    with pytest.raises(ConfigError, match="expected owner/name"):
        push(run.folder / "export" / "lora", Push(name), lambda text: True)


def test_a_run_without_an_export_and_folders_that_may_not_be_sent(hub, tmp_path, run):
    done = studio(hub, tmp_path, "push", "nothing", REPO, "--runs", str(tmp_path), "--yes")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    folder = tmp_path / "some"
    folder.mkdir()
    with pytest.raises(ConfigError, match="expected a README.md"):
        check_folder(folder)
    (folder / "README.md").write_text("x")
    (folder / "model.bin").write_bytes(b"\x80")
    with pytest.raises(ExportError, match="model.bin: expected safetensors, got a pickle"):
        check_folder(folder)
    (folder / "model.bin").unlink()
    (folder / "secret").symlink_to("/etc/hostname")
    with pytest.raises(ExportError, match="a link that leads out"):
        check_folder(folder)
    assert hub.requests == []


def test_two_exports_are_not_chosen_between(hub, tmp_path, run):
    second = run.folder / "export" / "pipeline"
    second.mkdir()
    (second / "export.json").write_text(json.dumps({"files": []}))
    try:
        done = upload(hub, tmp_path, run, "--yes")
        assert done.returncode == 2 and "expected one export of run" in done.stderr and hub.requests == []
    finally:
        (second / "export.json").unlink()
        second.rmdir()
