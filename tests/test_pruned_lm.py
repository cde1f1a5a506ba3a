"""Pruned language models load with AutoModelForCausalLM: bit-equal where all layers have the same widths, else with zeros."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

from pruning.compact import Facts, count
from pruning.formats import predicted_params
from pruning.lm import save_language_model
from pruning.sites import find_groups
from pruning.surgery import cut
from studio.errors import ConfigError

FACTS = Facts("tiny", "wanda", seed=1)
TOKENS = torch.arange(12)[None]
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4}
KINDS = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config)}
logging.set_verbosity_error()


@pytest.fixture(params=KINDS)
def whole(request):
    """Two layers, 2 query heads to a key-value head; Qwen2 has biases, and here one matrix for input and output."""
    torch.manual_seed(0)
    kind, config = KINDS[request.param]
    return kind(config(**SIZES, num_hidden_layers=2, tie_word_embeddings=request.param == "qwen2")).eval()


def pruned(whole, heads=2, neurons=30, other=None):
    """(sliced copy, groups, kept): so many key-value heads and neurons of each layer, `other` neurons of the last."""
    small = copy.deepcopy(whole)
    groups = [group for group in find_groups(whole) if group.kind != "blocks"]
    kept = {
        group.name: torch.randperm(group.units)[: heads if group.kind == "heads" else neurons].sort().values for group in groups
    }
    if other is not None:
        kept[groups[-1].name] = torch.arange(other)
    cut(small, groups, kept)
    return small, groups, kept


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


@pytest.mark.parametrize("form", ["compact", "dense"])
def test_uniform_widths_come_back(whole, tmp_path, form):
    small, groups, kept = pruned(whole)
    save_language_model(small, None, groups, kept, tmp_path, FACTS, form, max_shard_size="20KB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is type(whole) and len(list(tmp_path.glob("*.safetensors"))) > 1
    assert (logits(whole) - logits(small)).abs().max() > 1e-3
    record = json.loads((tmp_path / "pruning.json").read_text())
    left = predicted_params(count(whole), groups, kept)
    assert record["parameters"] == {"before": count(whole), "after": left if form == "compact" else count(whole)}
    assert record["sha256"].keys() == {path.name for path in tmp_path.glob("*.safetensors")}
    if form == "dense":
        assert (logits(again) - logits(small)).abs().max() <= 1e-6 and count(again) == count(whole)
        return
    assert torch.equal(logits(again), logits(small)) and count(again) == left == count(small)
    config = json.loads((tmp_path / "config.json").read_text())
    said = [config[name] for name in ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")]
    assert said == [30, 4, 2, 4]


def test_a_count_of_heads_that_a_config_class_refuses_names_those_it_takes(tmp_path):
    """32 % 6 != 0: transformers 5.23 refuses that for Llama even with an explicit head_dim, and takes it for Qwen2."""
    for name, (kind, config) in KINDS.items():
        small, groups, kept = pruned(kind(config(**SIZES, num_hidden_layers=1)).eval(), heads=3)
        if name == "llama":
            with pytest.raises(
                ConfigError, match="divides hidden_size = 32, .* got 6. Keep 2 or 4 or 8 query heads .2 to a key-value"
            ):
                save_language_model(small, None, groups, kept, tmp_path / name, FACTS)
            assert not (tmp_path / name).exists()
            save_language_model(small, None, groups, kept, tmp_path / name, FACTS, "dense")
        else:
            save_language_model(small, None, groups, kept, tmp_path / name, FACTS)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        assert (logits(again) - logits(small)).abs().max() <= 1e-6


def test_widths_that_differ_have_the_dense_form_only(whole, tmp_path):
    small, groups, kept = pruned(whole, other=17)
    with pytest.raises(ConfigError, match="one intermediate_size for all layers of a .*, got 17, 30.* per layer .*dense form"):
        save_language_model(small, None, groups, kept, tmp_path, FACTS)
    assert not list(tmp_path.iterdir())
    save_language_model(small, None, groups, kept, tmp_path, FACTS, "dense")
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert (logits(again) - logits(small)).abs().max() <= 1e-6


def test_emptied_layers_have_the_dense_form_only(whole, tmp_path):
    small, groups, kept = pruned(whole, neurons=0)
    with pytest.raises(ConfigError, match="at least 1 intermediate_size, got 0"):
        save_language_model(small, None, groups, kept, tmp_path, FACTS)
    save_language_model(small, None, groups, kept, tmp_path, FACTS, "dense")
    assert (logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()) - logits(small)).abs().max() <= 1e-6


@pytest.mark.parametrize("neurons", [48, 30])
def test_a_dropped_layer_lowers_the_depth(whole, tmp_path, neurons):
    groups = find_groups(whole)
    kept = {group.name: torch.arange(group.units) for group in groups}
    kept |= {group.name: torch.arange(neurons) for group in groups if group.kind == "neurons"}
    kept["model.layers.0"] = torch.arange(0)
    small = copy.deepcopy(whole)
    cut(small, groups, kept)
    save_language_model(small, None, groups, kept, tmp_path, FACTS)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    small.config.num_hidden_layers = 1  # a cut leaves the config as it was
    assert torch.equal(logits(again), logits(small)) and (logits(whole) - logits(small)).abs().max() > 1e-3
    left = predicted_params(count(whole), groups, kept)
    assert json.loads((tmp_path / "pruning.json").read_text())["parameters"] == {"before": count(whole), "after": left}
    with pytest.raises(ConfigError, match="Use the depth form"):
        save_language_model(small, None, groups, kept, tmp_path / "dense", FACTS, "dense")


def test_a_layer_without_heads_has_the_dense_form_only(whole, tmp_path):
    small, groups, kept = pruned(whole, heads=0)
    with pytest.raises(ConfigError, match="at least 1 num_attention_heads, got 0"):
        save_language_model(small, None, groups, kept, tmp_path, FACTS)
    save_language_model(small, None, groups, kept, tmp_path, FACTS, "dense")
    assert (logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()) - logits(small)).abs().max() <= 1e-6


FRESH = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    save_file({"logits": model(torch.arange(12)[None]).logits}, sys.argv[2])
assert not {"studio", "pruning", "flows"} & set(sys.modules)
"""


def test_a_fresh_process_needs_transformers_only_and_finds_no_pickle(tmp_path):
    torch.manual_seed(0)
    small, groups, kept = pruned(LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=2)).eval())
    save_language_model(small, bundled_tokenizer(), groups, kept, tmp_path / "model", FACTS)
    for path in (tmp_path / "model").iterdir():
        assert path.suffix in (".safetensors", ".json", ".txt", ".jinja") and not path.read_bytes().startswith((b"PK", b"\x80"))
    assert (tmp_path / "model" / "tokenizer_config.json").is_file()
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", FRESH, str(tmp_path / "model"), str(tmp_path / "out.safetensors")]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert torch.equal(load_file(tmp_path / "out.safetensors")["logits"], logits(small))


def bundled_tokenizer():
    from transformers import AutoTokenizer

    from flows.load import locate

    return AutoTokenizer.from_pretrained(f"{locate('shapes')}/tokenizer")
