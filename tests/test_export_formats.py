"""Files for other programs: the strength arrives, nothing is dropped without a word, stock loaders give the same answers."""

import json

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from flows.adapter import LORA_FILE
from flows.denoise import RowNoise
from flows.export import COMFY_FILE, adapted_modules, load_lora, write_lora, write_pipeline
from flows.import_lora import import_lora
from flows.load import Lora, Model, build_policy, load_backbone, locate
from flows.sampler import Sampler
from studio.errors import ConfigError, ExportError, MissingError

MODEL = Model(train="lora", lora=Lora(rank=4, alpha=8.0), device="cpu", text_length=1)
TEXT = ["a cyan triangle"]


def trained(train="lora", dtype="float32"):
    """A policy whose adapters or weights have moved, with strength alpha/r = 2."""
    policy = build_policy(
        Model(train=train, lora=MODEL.lora, device="cpu", text_length=1, dtype=dtype), Sampler(guidance=1.0), seed=0
    )
    draws = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_((0.1 if train == "lora" else 0.01) * torch.randn(parameter.shape, generator=draws))
    return policy


@torch.no_grad()
def answer(network, condition, sigma=0.4):
    x = RowNoise([3], (8, 8, 8))()
    return network(
        x,
        timestep=torch.tensor([1000 * sigma]),
        encoder_hidden_states=condition["embeds"],
        pooled_projections=condition["pooled"],
        return_dict=False,
    )[0]


def stock():
    return StableDiffusion3Pipeline.from_pretrained(locate("shapes"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, what the trained network answered, what the base answers, the condition, what write_lora says)"""
    policy = trained()
    condition = policy.backbone.encode(TEXT)
    wanted = answer(policy.model, condition)
    with policy.reference():
        base = answer(policy.model, condition)
    folder = tmp_path_factory.mktemp("lora")
    said = write_lora(policy, folder, underscored=True)
    return folder, wanted, base, condition, said


def change(folder, to, **edit):
    """A copy of the LoRA file with other keys or metadata."""
    state = load_file(folder / LORA_FILE)
    rename = edit.get("rename", lambda key: key)
    save_file({rename(key): value for key, value in state.items()}, to / LORA_FILE, metadata=edit.get("metadata"))
    return to


@pytest.mark.parametrize("metadata", ["kept", "stripped"])
def test_a_lora_file_has_its_strength_with_and_without_metadata(exported, tmp_path, metadata):
    folder, wanted, base, condition, said = exported
    pipeline = stock()
    pipeline.load_lora_weights(folder if metadata == "kept" else change(folder, tmp_path))
    assert (answer(pipeline.transformer, condition) - wanted).abs().max() <= 1e-6
    assert (wanted - base).abs().max() > 0.05
    assert (
        said.error <= 1e-6
        and said.effect > 0.05
        and (said.component, said.pipeline)
        == (
            "transformer",
            "StableDiffusion3Pipeline",
        )
    )


def test_matrices_that_are_not_folded_would_arrive_at_half_strength(exported, tmp_path):
    """Why B' = (alpha/r)·B is stored: with alpha/r = 2 the raw matrices load without a word and act half as much."""
    folder, wanted, base, condition, _ = exported
    state = {key: value / 2 if "lora_B" in key else value for key, value in load_file(folder / LORA_FILE).items()}
    save_file(state, tmp_path / LORA_FILE)
    pipeline = stock()
    pipeline.load_lora_weights(tmp_path)
    moved = (answer(pipeline.transformer, condition) - base).norm() / (wanted - base).norm()
    assert 0.3 < moved < 0.8


def test_the_keys_are_those_that_diffusers_and_comfyui_share(exported):
    keys = load_file(exported[0] / LORA_FILE).keys()
    assert all(key.startswith("transformer.transformer_blocks.") for key in keys)
    assert {key.split(".lora_")[1] for key in keys} == {"A.weight", "B.weight"}


def test_the_underscored_file_holds_the_same_adapter(exported):
    plain, other = load_file(exported[0] / LORA_FILE), load_file(exported[0] / COMFY_FILE)
    name = "transformer_blocks.0.attn.to_out.0"
    start = "lora_transformer_transformer_blocks_0_attn_to_out_0"  # written out: ComfyUI's table has this name
    assert torch.equal(other[f"{start}.lora_down.weight"], plain[f"transformer.{name}.lora_A.weight"])
    assert torch.equal(other[f"{start}.lora_up.weight"], plain[f"transformer.{name}.lora_B.weight"])
    assert other[f"{start}.alpha"] == 4 and len(other) == len(plain) * 3 // 2


@pytest.mark.parametrize(
    ("rename", "advice"),
    [
        (lambda key: key.replace("transformer.", "diffusion_model.", 1), "LoRA file of this model family"),
        (lambda key: key.replace("transformer.", "base_model.model.", 1), "studio import-lora"),
        (lambda key: key.replace("transformer.", "unet.", 1), "LoRA file of this model family"),
    ],
    ids=["ComfyUI's prefix with diffusers' names", "PEFT's prefix", "another component"],
)
def test_a_file_with_wrong_prefixes_is_an_error_where_stock_code_only_warns(exported, tmp_path, rename, advice):
    folder, _, base, condition, _ = exported
    change(folder, tmp_path, rename=rename)
    pipeline = stock()
    pipeline.load_lora_weights(tmp_path)  # no error
    assert torch.equal(answer(pipeline.transformer, condition), base)
    with pytest.raises(ExportError, match="unmatched: .*lora_A.*" + advice):
        load_lora(stock(), tmp_path / LORA_FILE)


def test_a_file_of_which_a_part_is_lost_is_an_error(exported, tmp_path):
    change(exported[0], tmp_path, rename=lambda key: key.replace("transformer.transformer_blocks.5.", "blocks.5."))
    with pytest.raises(ExportError, match="unmatched: blocks.5."):
        load_lora(stock(), tmp_path / LORA_FILE)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_whole_pipeline_loads_merged_and_in_safetensors_only(tmp_path, train):
    policy = trained(train)
    condition = policy.backbone.encode(TEXT)
    wanted = answer(policy.model, condition)
    said = write_pipeline(policy, tmp_path)
    again = StableDiffusion3Pipeline.from_pretrained(tmp_path)
    assert (answer(again.transformer, condition) - wanted).abs().max() <= 1e-5 * wanted.abs().max() and said.error <= 1e-5
    assert not adapted_modules(again.transformer)
    assert {path.suffix for path in tmp_path.rglob("*") if path.stat().st_size > 100_000} <= {".safetensors"}
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".ckpt")]
    assert not [path for path in tmp_path.rglob("*.json") if str(locate("shapes")) in path.read_text()]


def test_a_pipeline_in_half_precision_says_how_far_it_is(tmp_path):
    said = write_pipeline(trained("full"), tmp_path, "bfloat16")
    assert 1e-4 < said.error < 0.05
    assert {value.dtype for value in load_file(next((tmp_path / "transformer").glob("*.safetensors"))).values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_pipeline_with_a_base_in_half_precision_can_be_exported(tmp_path, dtype):
    """The usual case for large models: the merge is in float32, and so is what it is compared with."""
    said = write_pipeline(trained(dtype=dtype), tmp_path)
    assert said.error <= 1e-5 < 0.05 < said.effect


def test_a_change_on_the_way_is_refused(tmp_path, monkeypatch):
    """What the check after reloading is for: here the strength is folded in twice."""
    monkeypatch.setattr("flows.export.folded", lambda model: {k: v * 4 if "lora_B" in k else v for k, v in unfolded(model).items()})
    with pytest.raises(ExportError, match="as the trained ones within 1e-05, got"):
        write_lora(trained(), tmp_path)


def unfolded(model):
    from peft.utils import get_peft_model_state_dict

    return get_peft_model_state_dict(model)


def test_a_fully_trained_run_has_no_lora(tmp_path):
    with pytest.raises(ConfigError, match="Use pipeline"):
        write_lora(trained("full"), tmp_path)


def peft_folder(to, *, adapter="default", network=None, **settings):
    """A folder as flow_grpo and its relatives write it, with random B -> (folder, the network inside)."""
    torch.manual_seed(5)
    network = stock().transformer if network is None else network
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["to_q", "to_out.0"], "init_lora_weights": False} | settings)
    model = get_peft_model(network, config)
    model.save_pretrained(to)
    return to, model


PATTERNS = {
    "rank_pattern": {"to_q": 2, "transformer_blocks.1.attn.to_out.0": 6},
    "alpha_pattern": {"transformer_blocks.1.attn.to_q": 3},
}


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, PATTERNS, PATTERNS | {"use_rslora": True}],
    ids=["alpha 8 rank 4", "rslora", "patterns", "patterns and rslora"],
)
def test_a_peft_folder_is_imported_at_its_strength(tmp_path, settings):
    folder, model = peft_folder(tmp_path / "peft", **settings)
    condition = load_backbone(MODEL).encode(TEXT)
    wanted = answer(model, condition)
    said = import_lora(folder, tmp_path / "out", underscored=True, base=load_backbone(MODEL))
    pipeline = stock()
    base = answer(pipeline.transformer, condition)
    pipeline.load_lora_weights(tmp_path / "out")
    assert (answer(pipeline.transformer, condition) - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert (wanted - base).abs().max() > 0.01
    assert said.error <= 1e-6 and said.modules == len(adapted_modules(model))
    assert said.rank == (6 if "rank_pattern" in settings else 4)


def test_why_the_importer_exists(tmp_path):
    """Stock code on the same folder: `load_lora_weights` changes nothing, `load_lora_adapter` forgets alpha."""
    folder, model = peft_folder(tmp_path)
    condition = load_backbone(MODEL).encode(TEXT)
    wanted = answer(model, condition)
    pipeline = stock()
    base = answer(pipeline.transformer, condition)
    pipeline.load_lora_weights(folder, weight_name="adapter_model.safetensors")
    assert torch.equal(answer(pipeline.transformer, condition), base)
    with pytest.raises(ExportError, match="run `studio import-lora`"):
        load_lora(stock(), folder / "adapter_model.safetensors")
    other = stock().transformer
    other.load_lora_adapter(folder, weight_name="adapter_model.safetensors", prefix="base_model.model")
    assert (answer(other, condition) - wanted).abs().max() > 1e-3


def tiny_unet():
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


@pytest.mark.parametrize("file", [LORA_FILE, COMFY_FILE])
def test_a_unet_gets_both_kinds_of_keys_and_diffusers_loads_either(tmp_path, file):
    network = tiny_unet()
    given = torch.randn(1, 4, 8, 8), torch.tensor([5.0]), torch.randn(1, 3, 8)
    with torch.no_grad():
        base = network(*given).sample
        folder, model = peft_folder(tmp_path / "peft", network=network)
        wanted = model(*given).sample
    assert import_lora(folder, tmp_path / "out").component == "unet"
    rest = ("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor")
    pipeline = StableDiffusionPipeline(unet=tiny_unet(), **dict.fromkeys(rest), requires_safety_checker=False)
    load_lora(pipeline, tmp_path / "out" / file)
    with torch.no_grad():
        assert (pipeline.unet(*given).sample - wanted).abs().max() <= 1e-6 < 1e-3 < (wanted - base).abs().max()


def settings_of(folder, **changes):
    data = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(data | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "expected a plain LoRA, got use_dora = True"),
        ({"peft_type": "LOHA"}, "peft_type = 'LOHA'"),
        ({"modules_to_save": ["norm_out"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"r": 8}, "expected rank 4 as in adapter_model.safetensors .* got r = 8"),
        ({"rank_pattern": {"to_q": 2}}, "to_q: expected rank 4"),
        ({"lora_alpha": None}, "lora_alpha = None"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_a_pair_of_matrices_cannot_say_is_refused(tmp_path, changes, says):
    folder, _ = peft_folder(tmp_path / "peft")
    settings_of(folder, **changes)
    with pytest.raises(ExportError, match=says):
        import_lora(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_is_named(tmp_path):
    folder, _ = peft_folder(tmp_path / "peft")
    (folder / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ExportError, match=r"adapter_model.safetensors: expected a safetensors file, got a damaged one"):
        import_lora(folder, tmp_path / "out")


def test_pickles_halves_and_folders_without_settings_are_refused(tmp_path):
    folder, _ = peft_folder(tmp_path / "peft")
    state = load_file(folder / "adapter_model.safetensors")
    save_file({k: v for k, v in state.items() if "blocks.0.attn.to_q.lora_B" not in k}, folder / "adapter_model.safetensors")
    with pytest.raises(ExportError, match="expected lora_A and lora_B of one rank for .*to_q"):
        import_lora(folder, tmp_path / "out")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ExportError, match="adapter_model.bin, a pickle"):
        import_lora(folder, tmp_path / "out")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(MissingError, match="adapter_config.json"):
        import_lora(folder, tmp_path / "out")


def test_an_import_that_would_not_answer_as_its_folder_is_refused(tmp_path, monkeypatch):
    folder, _ = peft_folder(tmp_path / "peft")
    monkeypatch.setattr("flows.import_lora.strength", lambda *given: 1.0)  # what a loader that forgets alpha does
    with pytest.raises(ExportError, match="expected the answers of the PEFT folder"):
        import_lora(folder, tmp_path / "out", base=load_backbone(MODEL))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("name", "prefix", "resolution"),
    [("tiny-sd3", "transformer.", 16), ("tiny-flux", "transformer.", 32), ("tiny-sdxl", "unet.", 16)],
)
def test_the_lora_of_every_backbone_comes_back_through_stock_loading(tmp_path, name, prefix, resolution):
    """`write_lora` drops the adapters, loads its own file with diffusers and compares velocities."""
    model = Model(random=name, resolution=resolution, device="cpu", lora=Lora(rank=4, alpha=8.0))
    policy = build_policy(model, Sampler(steps=3, eval_steps=3, kernel="ddim"), seed=0)
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draws))
    written = write_lora(policy, tmp_path)
    assert written.error <= 1e-6 and written.effect > 1e-3
    keys, prefix = load_file(tmp_path / LORA_FILE), "unet." if name == "tiny-sdxl" else "transformer."
    assert keys and all(key.startswith(prefix) for key in keys)
    assert (tmp_path / COMFY_FILE).exists() is (prefix == "unet.")
