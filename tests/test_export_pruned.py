"""`studio export --format pruned-...`: a prune run's network leaves in three forms, compared after reloading, with a card."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import StableDiffusion3Pipeline
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from flows.load import Model, load_backbone, locate
from pruning.compact import Facts, load_compact, save_compact
from pruning.sites import find_groups
from pruning.surgery import cut
from studio.errors import ConfigError, ExportError, MissingError, RunError
from studio.export import MARK, Export, export_run
from studio.export_pruned import probe
from studio.run import RunView

RECIPE = {"model": {"id": "shapes", "device": "cpu", "text_length": 1}, "seed": 3}
SUMMARY = {"prompts": 64, "params_kept": 0.7, "flops_kept": 0.61, "latency_ratio": 0.8, "latent_error": 0.123}


def prune_run(folder, kinds):
    """What a prune run leaves behind, of the bundled model -> (its view, the sliced network)."""
    whole = StableDiffusion3Pipeline.from_pretrained(locate("shapes")).transformer
    groups = [group for group in find_groups(whole) if group.kind in kinds]
    kept = {group.name: torch.arange(group.units)[group.units // 3 :] for group in groups}
    if "blocks" in kinds:
        kept = {group.name: torch.arange(i != 1) for i, group in enumerate(groups)}
    network = copy.deepcopy(whole)
    cut(network, groups, kept)
    facts = Facts(str(folder), "taylor", seed=3, align=2, calibration="ab12", ratios={"units": 0.67, "total": 0.7}, flops=0.61)
    save_compact(network, groups, kept, folder / "pruned", facts)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    for name, data in (("status", {"state": "finished"}), ("summary", SUMMARY), ("env", {"versions": {"torch": "2"}})):
        (folder / f"{name}.json").write_text(json.dumps(data))
    return RunView.open(folder), network


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return prune_run(tmp_path_factory.mktemp("narrow"), ("heads", "neurons"))


@pytest.mark.parametrize("form", ["compact", "dense"])
def test_a_narrowed_network_leaves_in_its_pipeline(narrow, tmp_path, form):
    view, network = narrow
    said = export_run(view, Export(f"pruned-{form}", out=tmp_path))
    assert said["error"] <= 1e-5 and said["folder"] == str(tmp_path)
    backbone = load_backbone(Model(id=str(tmp_path), device="cpu", text_length=1))
    assert (probe(backbone, backbone.network) - probe(backbone, network)).abs().max() <= 1e-5
    for file in tmp_path.rglob("*.json"):
        assert str(view.folder) not in file.read_text() and str(locate("shapes")) not in file.read_text(), file
    mark = json.loads((tmp_path / MARK).read_text())
    assert set(mark["files"]) | {MARK} == {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert mark["parameters"]["before"] == sum(p.numel() for p in load_backbone(Model(device="cpu")).network.parameters())
    left = sum(p.numel() for p in (network if form == "compact" else backbone.network).parameters())
    assert mark["parameters"]["after"] == left


def test_the_card_states_sparsity_size_and_both_ways_to_load(narrow, tmp_path):
    view, _ = narrow
    said = export_run(view, Export("pruned-compact", out=tmp_path))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model_relation == "finetune" and {"pruned", "studio"} <= set(card.data.tags)
    assert "trust_remote_code=True" in card.text and "model: {id: ./THIS-FOLDER}" in card.text
    groups = json.loads((view.folder / "pruned" / "pruning.json").read_text())["groups"]
    heads = [group for group in groups if group["kind"] == "heads"]
    before, kept = sum(group["n_before"] for group in heads), sum(len(group["kept"]) for group in heads)
    assert f"| heads | {before} | {kept} | {1 - kept / before:.1%} |" in card.text and "| neurons |" in card.text
    assert f"{said['parameters']['after']:,}" in card.text and "| operations kept | 0.61 |" in card.text
    assert "multiples of 2" in card.text and "ab12" in card.text and str(view.folder) not in card.text
    first = (tmp_path / "README.md").read_bytes()
    export_run(view, Export("pruned-compact", out=tmp_path))
    assert (tmp_path / "README.md").read_bytes() == first
    export_run(view, Export("pruned-dense", out=tmp_path))
    text = (tmp_path / "README.md").read_text()
    assert "StableDiffusion3Pipeline.from_pretrained" in text and "trust_remote_code" not in text
    assert not list(tmp_path.rglob("*.py"))


def test_dropped_blocks_leave_as_a_stock_pipeline(tmp_path):
    view, network = prune_run(tmp_path, ("blocks",))
    said = export_run(view, Export("pruned-depth", dtype="bfloat16"))
    folder = Path(said["folder"])
    assert folder == tmp_path / "export" / "pruned-depth" and 1e-5 < said["error"] < 0.05
    again = StableDiffusion3Pipeline.from_pretrained(folder).transformer
    assert again.config.num_layers == len(again.transformer_blocks) == len(network.transformer_blocks)
    stored = load_file(next((folder / "transformer").glob("*.safetensors")))
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert said["parameters"]["before"] > said["parameters"]["after"] == sum(p.numel() for p in network.parameters())
    with pytest.raises(ConfigError, match="Use the depth form"):
        export_run(view, Export("pruned-dense"))
    compact = export_run(view, Export("pruned-compact"))
    assert compact["parameters"] == said["parameters"] and compact["error"] <= 1e-5
    assert len(load_compact(Path(compact["folder"]) / "transformer").transformer_blocks) == len(network.transformer_blocks)


def test_what_cannot_be_exported_is_one_message_and_no_folder(narrow, tmp_path):
    view, _ = narrow
    with pytest.raises(ConfigError, match="only whole blocks .* Use the compact or the dense form"):
        export_run(view, Export("pruned-depth", out=tmp_path / "out"))
    with pytest.raises(ConfigError, match="no --step"):
        export_run(view, Export("pruned-compact", out=tmp_path / "out", step=3))
    other = tmp_path / "training"
    other.mkdir()
    for name in ("status.json", "recipe.yaml"):
        (other / name).write_text((view.folder / name).read_text())
    with pytest.raises(ConfigError, match="finished run of `studio prune`, got 'training'.* Use --format lora"):
        export_run(RunView.open(other), Export("pruned-compact", out=tmp_path / "out"))
    (other / "recipe.yaml").write_text(yaml.safe_dump({"model": {"random": "tiny-sd3", "device": "cpu"}}))
    (other / "pruned").symlink_to(view.folder / "pruned")
    with pytest.raises(RunError, match="expected a path inside it"):
        export_run(RunView.open(other), Export("pruned-compact", out=tmp_path / "out"))
    (other / "pruned").unlink()
    shutil.copytree(view.folder / "pruned", other / "pruned")
    with pytest.raises(ExportError, match="expected groups of the base model in pruning.json, got transformer_blocks"):
        export_run(RunView.open(other), Export("pruned-compact", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_command_says_the_size(narrow, tmp_path):
    view, _ = narrow
    command = [sys.executable, "-m", "studio.cli", "export", view.name, "--format", "pruned-compact"]
    done = subprocess.run(
        [*command, "--runs", str(view.folder.parent), "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "parameters; reloaded, the error is" in done.stderr and done.stdout.strip() == str(tmp_path / "out")


def test_a_damaged_run_is_refused(narrow, tmp_path):
    shutil.copytree(narrow[0].folder, tmp_path / "run")
    shard = next((tmp_path / "run" / "pruned").glob("*.safetensors"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(MissingError, match="expected the sha256 that pruning.json states") as raised:
        export_run(RunView.open(tmp_path / "run"), Export("pruned-compact"))
    assert raised.value.exit_code == 3 and not (tmp_path / "run" / "export" / "pruned-compact").exists()
