"""Pruned pipelines on disk: the same answers in a process that knows diffusers only, nothing damaged or pickled, three forms."""

import copy
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.utils import logging
from safetensors.torch import load_file, save_file

from flows.adapter import load_weights, save_weights
from flows.blueprint import blueprints, random_pipeline
from flows.load import Lora, Model, build_policy, load_backbone, locate
from flows.sampler import Sampler
from pruning.compact import Facts, count, load_compact, network_class, save_compact
from pruning.formats import predicted_params, save_pipeline
from pruning.pruned_model import ScatterLinear, write_record
from pruning.sites import find_groups
from pruning.surgery import cut, zero
from studio.errors import ConfigError, MissingError

FAMILIES = ("tiny-sd3", "tiny-flux", "tiny-sdxl", "shapes")
FACTS = Facts("shapes", "magnitude", seed=3, align=1, ratios={"units": 0.6, "prunable": 0.6, "total": 0.8}, flops=0.7)
logging.set_verbosity_error()
PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class Case:
    """A pipeline, its network cut at random with some emptied groups, and both forms of it on disk."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.part = "unet" if name == "tiny-sdxl" else "transformer"
        self.pipeline = (
            bundled() if name == "shapes" else random_pipeline(blueprints()[name], device="cpu", dtype=torch.float32, seed=0)
        )
        self.whole = getattr(self.pipeline, self.part).eval()
        self.groups = [group for group in find_groups(self.whole) if group.kind != "blocks"]
        draws = torch.Generator().manual_seed(1)
        self.kept, self.fill = {}, {}
        for i, group in enumerate(self.groups):
            stays = torch.rand(group.units, generator=draws) < 0.6
            stays[:] &= i % 5 != 0
            self.kept[group.name] = stays.nonzero().flatten()
            if group.kind == "modulation":
                self.fill[group.name] = torch.randn(group.units, generator=draws)
        self.network = copy.deepcopy(self.whole)
        cut(self.network, self.groups, self.kept, self.fill)
        for form in ("compact", "dense"):
            self.save(folder / form, form)

    def save(self, folder, form, **options):
        save_pipeline(self.pipeline, self.network, self.groups, self.kept, folder, FACTS, form, **options)

    def component(self, form="compact"):
        return self.folder / form / self.part


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return {name: Case(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def case(request, cases):
    return cases[request.param]


def bundled():
    from diffusers import StableDiffusion3Pipeline

    return StableDiffusion3Pipeline.from_pretrained(locate("shapes"))


def answer(network):
    """One forward on fixed numbers. The fresh process runs the text of this function: it knows torch and no more."""
    draws = torch.Generator().manual_seed(7)
    config, time, kind = network.config, torch.tensor([0.5]), type(network).__name__

    def normal(*shape):
        return torch.randn(shape, generator=draws)

    if "UNet" in kind:
        given = {"sample": normal(1, 4, 8, 8), "encoder_hidden_states": normal(1, 5, config.cross_attention_dim)}
        given["added_cond_kwargs"] = {"text_embeds": normal(1, 16), "time_ids": torch.zeros(1, 6)}
    else:
        given = {"encoder_hidden_states": normal(1, 5, config.joint_attention_dim)}
        given["pooled_projections"] = normal(1, config.pooled_projection_dim)
        given["hidden_states"] = normal(1, 16, config.in_channels) if "Flux" in kind else normal(1, config.in_channels, 8, 8)
    if "Flux" in kind:
        places = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
        given |= {"guidance": time, "img_ids": places, "txt_ids": torch.zeros(5, 3)}
    with torch.no_grad():
        return network(timestep=time, **given, return_dict=False)[0].contiguous()


FRESH = """
import json, sys, torch
from pathlib import Path
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("studio", "flows", "rewards", "pruning"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import diffusers
from diffusers import AutoModel, DiffusionPipeline
from safetensors.torch import save_file

diffusers.utils.logging.set_verbosity_error()

ANSWER

def refused(call):
    try:
        call()
    except (ValueError, OSError) as error:
        return str(error)
    return "not refused"

said = {}
out = Path(sys.argv[1])
for place in sys.argv[2:]:
    place = Path(place)
    part = "unet" if (place / "compact" / "unet").is_dir() else "transformer"
    index = json.loads((place / "compact" / "model_index.json").read_text())
    none = {k: None for k, v in index.items() if isinstance(v, list) and v[0] is None}
    stored = str(place / "compact" / part)
    pipe = DiffusionPipeline.from_pretrained(place / "compact", trust_remote_code=True, **none)
    network = getattr(pipe, part)
    pipe.save_pretrained(out / place.name, max_shard_size="30KB")
    stock = getattr(diffusers, type(network).__name__.removeprefix("Pruned"))
    again = getattr(DiffusionPipeline.from_pretrained(out / place.name, trust_remote_code=True, **none), part)
    dense = getattr(DiffusionPipeline.from_pretrained(place / "dense", **none), part)
    alone = AutoModel.from_pretrained(stored, trust_remote_code=True)
    half = AutoModel.from_pretrained(stored, trust_remote_code=True, dtype=torch.bfloat16)
    save_file({"compact": answer(network), "again": answer(again), "alone": answer(alone), "dense": answer(dense)},
              out / f"{place.name}.answers.safetensors")
    for name, which in (("compact", network), ("again", again), ("alone", alone)):
        save_file({key: value.clone() for key, value in which.state_dict().items()}, out / f"{place.name}.{name}.safetensors")
    said[place.name] = {
        "classes": [type(dense).__name__, isinstance(network, stock)],
        "untrusted": refused(lambda: DiffusionPipeline.from_pretrained(place / "compact", **none)),
        "untrusted alone": refused(lambda: AutoModel.from_pretrained(stored)),
        "stock": refused(lambda: stock.from_pretrained(stored)),
        "mismatched": refused(lambda: stock.from_pretrained(stored, ignore_mismatched_sizes=True, low_cpu_mem_usage=False)),
        "half": sorted({str(value.dtype) for value in half.parameters()}),
        "pickled": refused(lambda: network.save_pretrained(out / "pickled", safe_serialization=False)),
    }
(out / "said.json").write_text(json.dumps(said))
"""


@pytest.fixture(scope="module")
def fresh(cases, tmp_path_factory):
    """What a process without this project says of all folders, and where it left its files."""
    out = tmp_path_factory.mktemp("fresh")
    env = {**os.environ, "HF_MODULES_CACHE": str(out / "modules"), "HF_HUB_OFFLINE": "1"}
    env.pop("PYTHONPATH", None)
    folders = [str(case.folder) for case in cases.values()]
    command = [sys.executable, "-c", FRESH.replace("ANSWER", inspect.getsource(answer)), str(out), *folders]
    done = subprocess.run(command, cwd=out, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "said.json").read_text()), out


def test_a_fresh_process_has_the_same_weights_and_answers(case, fresh):
    said, out = fresh
    name = case.folder.name
    wanted, state = answer(case.network), case.network.state_dict()
    for form, got in load_file(out / f"{name}.answers.safetensors").items():
        assert (got - wanted).abs().max() <= 1e-5 * max(1, wanted.abs().max()), form
    for form in ("compact", "again", "alone"):
        stored = load_file(out / f"{name}.{form}.safetensors")
        assert stored.keys() == state.keys() and all(torch.equal(stored[key], state[key]) for key in state)
    assert (answer(case.whole) - wanted).abs().max() > 1e-3
    assert said[name]["classes"] == [type(case.whole).__name__, True]
    assert said[name]["half"] == ["torch.bfloat16"]


def test_nothing_is_run_or_guessed_without_leave(case, fresh):
    said = fresh[0][case.folder.name]
    for way in ("untrusted", "untrusted alone"):
        assert "trust_remote_code=True" in said[way] and "custom code" in said[way]
    for way in ("stock", "mismatched"):
        assert "this folder holds a pruned network" in said[way] and "trust_remote_code=True" in said[way]
    assert "expected safe_serialization=True" in said["pickled"]


def test_a_saved_copy_has_its_class_file_and_hashes_and_no_pickle(case, fresh):
    copied = fresh[1] / case.folder.name
    files = {path.name for path in (copied / case.part).iterdir()}
    assert len([name for name in files if name.endswith(".safetensors")]) > 1
    first, second = (json.loads((place / "pruning.json").read_text()) for place in (case.component(), copied / case.part))
    assert second["sha256"].keys() == {name for name in files if name.endswith(".safetensors")} != first["sha256"].keys()
    assert {k: v for k, v in first.items() if k not in ("sha256", "versions")} == {
        k: v for k, v in second.items() if k not in ("sha256", "versions")
    }
    assert type(load_compact(copied / case.part)) is type(load_compact(case.component()))
    scripts = [path for path in copied.rglob("*.py")]
    assert [path.read_text() for path in scripts] == [path.read_text() for path in case.component().glob("*.py")] and scripts
    for path in [*copied.rglob("*"), *case.folder.rglob("*")]:
        if path.is_file():
            assert path.suffix not in (".bin", ".pt", ".pth", ".pkl", ".ckpt")
            assert not path.read_bytes().startswith(PICKLE_MAGIC), path


def test_the_studio_reads_it_without_running_it(case):
    scripts = list(case.component().glob("*.py"))
    text = scripts[0].read_text()
    scripts[0].write_text("raise SystemExit('run')")
    try:
        again = load_compact(case.component())
    finally:
        scripts[0].write_text(text)
    state = case.network.state_dict()
    assert {key: tuple(value.shape) for key, value in again.state_dict().items()} == {k: tuple(v.shape) for k, v in state.items()}
    assert (answer(again) - answer(case.network)).abs().max() <= 1e-5
    assert again.record["groups"][0] == {
        "name": case.groups[0].name,
        "kind": case.groups[0].kind,
        "n_before": case.groups[0].units,
        "kept": case.kept[case.groups[0].name].tolist(),
    }
    assert again.record["method"] == "magnitude" and again.record["versions"].keys() == {"torch", "diffusers"}
    narrow = {name: module for name, module in case.network.named_modules() if isinstance(module, ScatterLinear)}
    assert narrow.keys() == {name for name, module in again.named_modules() if isinstance(module, ScatterLinear)}
    assert bool(narrow) == (case.name != "tiny-sdxl")


def test_modules_say_the_widths_that_the_cut_left(case):
    """Every plain number of every module: heads, inner widths, features."""
    again, told = dict(load_compact(case.component()).named_modules()), 0
    for name, module in case.network.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, int) and not isinstance(value, bool) and attribute != "training":
                assert getattr(again[name], attribute) == value, f"{name}.{attribute}"
                told += 1
        if hasattr(module, "processor"):
            assert type(again[name].processor) is type(module.processor)
    assert told > 20


def test_sizes_add_up(case):
    left = predicted_params(count(case.whole), case.groups, case.kept)
    assert count(case.network) == left == count(load_compact(case.component())) < count(case.whole)
    record = json.loads((case.component() / "pruning.json").read_text())
    assert record["parameters"] == {"before": count(case.whole), "after": left}
    stored = sum(value.numel() for file in case.component().glob("*.safetensors") for value in load_file(file).values())
    extra = sum(value.numel() for value in case.network.buffers())
    assert stored == left + extra  # buffers of removed outputs and position tables; no view of a larger tensor


def test_dense_is_zero_where_units_were_removed_and_has_their_constants(case):
    dense, zeroed = load_compact(case.component("dense")), copy.deepcopy(case.whole)
    zero(zeroed, case.groups, case.kept, case.fill)
    for key, value in zeroed.state_dict().items():
        assert torch.equal(dense.state_dict()[key], value), key
    assert type(dense) is type(case.whole)
    index = json.loads((case.folder / "dense" / "model_index.json").read_text())
    assert index[case.part] == ["diffusers", type(case.whole).__name__]
    assert "quantization_config" not in json.loads((case.component("dense") / "config.json").read_text())


@pytest.mark.parametrize("damage", ["a byte", "a file", "an index", "the config", "no weights", "a pickle", "another class"])
def test_a_damaged_folder_is_refused_with_what_to_do(cases, tmp_path, damage):
    case = cases["tiny-sd3"]
    save_compact(case.network, case.groups, case.kept, tmp_path, FACTS, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    says = {
        "a byte": f"{shard.name}: expected the sha256 that pruning.json states .* got [0-9a-f]{{64}}. The folder was damaged",
        "a file": f"expected its safetensors files, got no {shard.name}",
        "an index": f"{shard.name}: expected a weight file that pruning.json lists, got no such file",
        "the config": "config.json: expected a JSON file, got JSONDecodeError",
        "no weights": "expected its safetensors files, got none",
        "a pickle": "expected safetensors only, got diffusion_pytorch_model.bin, a pickle",
        "another class": "expected the class of a diffusers model in _class_name, got 'os'",
    }[damage]
    if damage == "a byte":
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    elif damage == "a file":
        shard.unlink()
    elif damage == "an index":
        index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
        stated = json.loads(index.read_text())
        stated["weight_map"] = {k: v for k, v in stated["weight_map"].items() if v != shard.name}
        index.write_text(json.dumps(stated))
    elif damage == "the config":
        (tmp_path / "config.json").write_text("{")
    elif damage == "no weights":
        for path in tmp_path.glob("*.safetensors*"):
            path.unlink()
    elif damage == "a pickle":
        torch.save({}, tmp_path / "diffusion_pytorch_model.bin")
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "os"}))
    with pytest.raises(MissingError, match=says) as raised:
        load_compact(tmp_path)
    assert raised.value.exit_code == 3


def test_a_folder_of_another_program_loads_by_its_shapes_alone(case, tmp_path):
    """The stock class in the config, no pruning.json: the header of the file says all."""
    config = json.loads((case.component("dense") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(case.network.state_dict(), tmp_path / "model.safetensors")
    again = load_compact(tmp_path)
    assert (answer(again) - answer(case.network)).abs().max() <= 1e-5
    again.save_pretrained(tmp_path / "ours")
    assert (answer(load_compact(tmp_path / "ours")) - answer(case.network)).abs().max() <= 1e-5
    state = load_file(tmp_path / "model.safetensors")
    linear = next(key for key in state if key.endswith("to_q.weight"))
    for key, value in (("another.weight", torch.zeros(3)), (linear, torch.zeros(3)), (linear, torch.zeros(3, 3))):
        save_file({**state, key: value}, tmp_path / "model.safetensors")
        with pytest.raises(MissingError, match=f"expected the tensors of a {type(case.whole).__name__}, got others "):
            load_compact(tmp_path)


def test_without_its_record_a_network_is_saved_with_what_its_config_says(cases, tmp_path):
    """Downloads of a pipeline by diffusers leave pruning.json behind: it is neither weights, config nor code."""
    case = cases["tiny-sd3"]
    shutil.copytree(case.component(), tmp_path / "fetched")
    (tmp_path / "fetched" / "pruning.json").unlink()
    network = network_class(SD3Transformer2DModel).from_pretrained(tmp_path / "fetched")
    network.save_pretrained(tmp_path / "saved")
    again = load_compact(tmp_path / "saved")
    assert again.record["method"] == "magnitude" and again.record["sha256"] and "groups" not in again.record
    assert torch.equal(answer(again), answer(network))


def without(case, blocks):
    """The case's whole network without some blocks -> (network, groups, kept)."""
    groups = [group for group in find_groups(case.whole) if group.kind == "blocks"]
    kept = {group.name: torch.arange(group.name not in blocks) for group in groups}
    network = copy.deepcopy(case.whole)
    cut(network, groups, kept)
    return network, groups, kept


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("tiny-sd3", ["transformer_blocks.0"]),
        ("tiny-flux", ["single_transformer_blocks.0"]),
        ("tiny-sdxl", [f"{place}.attentions.0.transformer_blocks.1" for place in ("down_blocks.1", "mid_block")]),
    ],
)
def test_depth_is_stock(cases, tmp_path, name, blocks):
    case = cases[name]
    network, groups, kept = without(case, blocks)
    save_pipeline(case.pipeline, network, groups, kept, tmp_path, FACTS, "depth")
    again = type(case.whole).from_pretrained(tmp_path / case.part)
    assert (answer(again) - answer(network)).abs().max() <= 1e-5
    assert count(again) == count(network) == predicted_params(count(case.whole), groups, kept) < count(case.whole)
    assert not list(tmp_path.rglob("*.py")) and getattr(case.pipeline, case.part) is case.whole
    with pytest.raises(ConfigError, match=f"without {blocks[0]}.* depth form .* or compact"):
        save_pipeline(case.pipeline, network, groups, kept, tmp_path / "dense", FACTS, "dense")
    with pytest.raises(ConfigError, match="expected weights that fit"):
        save_pipeline(case.pipeline, network, groups, kept, tmp_path / "unsaid", FACTS, "depth", config_changes={})
    save_pipeline(case.pipeline, network, groups, kept, tmp_path / "compact", FACTS, "compact")
    again = load_compact(tmp_path / "compact" / case.part)
    assert (answer(again) - answer(network)).abs().max() <= 1e-5
    assert again.record["parameters"] == {"before": count(case.whole), "after": count(network)}


def test_depth_is_refused_for_narrowed_blocks(case, tmp_path):
    with pytest.raises(ConfigError, match="only whole blocks were removed for the depth form, got .* of .* Use the compact or"):
        case.save(tmp_path, "depth")
    assert not list(tmp_path.iterdir())


def moved(policy, size):
    draws = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(size * torch.randn(parameter.shape, generator=draws))
    return policy


@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_pruned_pipeline_is_trained_and_its_checkpoint_comes_back(cases, tmp_path, train):
    case = cases["shapes"]
    model = Model(id=str(case.folder / "compact"), train=train, lora=Lora(rank=4, alpha=8.0), device="cpu", text_length=1)
    policy = build_policy(model, Sampler(guidance=1.0), seed=0)
    assert (answer(policy.model) - answer(case.network)).abs().max() <= 1e-5
    x = torch.randn(2, *policy.backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    policy.velocity(["a red circle", "a cyan square"])(x, torch.full((2,), 0.5)).square().mean().backward()
    graded = [parameter for parameter in policy.trainable() if parameter.grad is not None and parameter.grad.abs().sum() > 0]
    assert len(graded) > 10 and all(torch.isfinite(parameter.grad).all() for parameter in graded)
    moved(policy, 0.05)
    save_weights(policy.backbone.pipeline, policy.model, tmp_path, lora=train == "lora")
    again = build_policy(model, Sampler(guidance=1.0), seed=1)
    load_weights(again.model, tmp_path, lora=train == "lora")
    wanted = answer(policy.model)
    assert (answer(again.model) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (answer(case.network) - wanted).abs().max() > 1e-3
    if train == "full":
        assert (answer(load_compact(tmp_path / "transformer")) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_damaged_pipeline_is_refused_where_a_recipe_names_it(cases, tmp_path):
    case = cases["shapes"]
    case.save(tmp_path, "compact")
    write_record(tmp_path / case.part, {"schema": 1})
    shard = next((tmp_path / case.part).glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-4] + b"\x00\x01\x02\x03")
    with pytest.raises(MissingError, match="expected the sha256 that pruning.json states"):
        load_backbone(Model(id=str(tmp_path), device="cpu"))


def test_the_dense_form_is_a_model_for_recipes_too(cases):
    case = cases["shapes"]
    backbone = load_backbone(Model(id=str(case.folder / "dense"), device="cpu", text_length=1, dtype="bfloat16"))
    assert type(backbone.network) is SD3Transformer2DModel and backbone.network.dtype == torch.bfloat16


def test_the_class_file_imports_torch_and_diffusers_only(case):
    import ast

    tree = ast.parse(next(case.component().glob("*.py")).read_text())
    names = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert names - set(sys.stdlib_module_names) == {"torch", "diffusers"}
    assert Path(case.component(), "pruning.json").stat().st_size > 0
