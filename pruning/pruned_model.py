"""Networks with layers of their own widths, and what such networks have that stock classes do not.

This file travels with compact exports: at the end of its copy there, two lines make the class of one family. It imports
torch and diffusers only, and is the one source of that class, here and there.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RECORD = "pruning.json"  # what was removed, how, and the sha256 of every weight file
WEIGHTS = "diffusion_pytorch_model.safetensors"
SOURCE = Path(__file__).read_text(encoding="utf-8")  # read now: diffusers keeps one copy per name and overwrites it
# Stock from_pretrained prints the name of a quantization method that it does not know and stops. Nothing else in a config
# does: a shape mismatch is skipped with `ignore_mismatched_sizes=True`, which leaves random layers and a warning.
REFUSAL = {
    "quant_method": "none, because this folder holds a pruned network whose layers have widths of their own. Load it with "
    "Alignment Studio, which runs no code of this folder; or read the .py file beside the weights, and if you trust it, name "
    "the revision that you read beside trust_remote_code=True (AutoModel or DiffusionPipeline)"
}


class ScatterLinear(nn.Module):
    """A linear layer some of whose outputs were removed: those are constants, and the width stays.

    y[kept] = W x + b, y elsewhere = fill.
    """

    kept: Tensor
    fill: Tensor

    def __init__(self, in_features: int, out_features: int, rows: int, *, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(rows, in_features))
        self.bias = nn.Parameter(torch.empty(rows)) if bias else None
        self.register_buffer("kept", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("fill", torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        made = nn.functional.linear(x, self.weight, self.bias)
        constant = self.fill.to(made).expand(*made.shape[:-1], -1)
        return constant.index_copy(-1, self.kept, made)


class EmptyAttention:
    """The processor of a diffusers attention module without heads: its output layers' biases, for every token."""

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args, **kwargs):
        to_out = getattr(attn, "to_out", None)  # a FLUX single block reads the heads itself
        hidden = _without_heads(None if to_out is None else to_out[0], hidden_states)
        joint = getattr(attn, "add_k_proj", None) is not None  # cross-attention is given text too, and answers for the picture
        if encoder_hidden_states is None or not joint:
            return hidden
        return hidden, _without_heads(getattr(attn, "to_add_out", None), encoder_hidden_states)


class EmptyDecoderAttention(nn.Module):
    """Stands for the attention of a decoder layer of which no head is left: its output layer's bias, for every token."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.layer_idx = attention.layer_idx
        for name, child in attention.named_children():  # the names of the weights stay
            self.add_module(name, child)

    def forward(self, hidden_states: Tensor, *args, past_key_values=None, **kwargs):
        if past_key_values is not None:  # caches read the length of a sequence from what their first layer holds
            rows, tokens = hidden_states.shape[:2]
            empty = hidden_states.new_zeros(rows, 1, tokens, 1)
            past_key_values.update(empty, empty, self.layer_idx)
        return _without_heads(self.o_proj, hidden_states), None


def _without_heads(out, x: Tensor) -> Tensor:
    nothing = x.new_zeros(*x.shape[:-1], 0)
    return nothing if out is None else out(nothing)


def resize(network: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Linear layers with the shapes that a state dict has, and what their modules say about widths.

    shapes: by key, at least of what differs from the stock class; values are left uninitialized.
    """
    modules: dict[str, Any] = dict(network.named_modules())
    sizes = {name: module.to_q.out_features // module.heads for name, module in modules.items() if _has_heads(module)}
    for name, layer in modules.items():
        if not isinstance(layer, nn.Linear):
            continue
        rows, columns = shapes.get(f"{name}.weight", layer.weight.shape)
        if f"{name}.kept" in shapes:
            narrow = ScatterLinear(layer.in_features, layer.out_features, rows, bias=layer.bias is not None)
            parent, _, last = name.rpartition(".")
            setattr(modules[parent], last, narrow.to(layer.weight))
        elif (rows, columns) != (layer.out_features, layer.in_features):
            layer.out_features, layer.in_features = rows, columns
            layer.weight = nn.Parameter(layer.weight.new_empty(rows, columns))
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias.new_empty(rows))
    for name, size in sizes.items():
        rows = modules[name].to_q.out_features
        if rows % size:
            raise ValueError(f"{name}.to_q: expected whole heads of {size} rows, got {rows} rows. The folder is of another base.")
        _restate(modules[name], rows // size, size)
    for module in modules.values():
        if type(module).__name__ == "FluxSingleTransformerBlock":
            module.mlp_hidden_dim = module.proj_mlp.out_features
            module.proj_out._tp_packed_row_blocks = [module.attn.inner_dim, module.mlp_hidden_dim]


def _has_heads(module: Any) -> bool:
    return isinstance(getattr(module, "to_q", None), nn.Linear) and hasattr(module, "heads")


def _restate(attention: Any, heads: int, size: int) -> None:
    if heads == attention.heads:
        return
    stated = {"heads": heads, "sliceable_head_dim": heads, "inner_dim": heads * size, "inner_kv_dim": heads * size}
    for attribute, value in stated.items():
        if hasattr(attention, attribute):
            setattr(attention, attribute, value)
    if not heads:
        attention.set_processor(EmptyAttention())


def sha256(file: Path) -> str:
    found = hashlib.sha256()
    with open(file, "rb") as handle:
        while part := handle.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def write_record(folder: Path, record: Mapping[str, Any], **versions: str) -> None:
    """The record with the library versions and with the hashes of the weight files that lie in the folder now."""
    versions = {"torch": str(torch.__version__), **versions}
    hashes = {file.name: sha256(file) for file in sorted(folder.glob("*.safetensors"))}
    text = json.dumps({**record, "versions": versions, "sha256": hashes}, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def pruned_class(base: Any, module: str) -> Any:
    """`Pruned<Base>`: the diffusers class `base` with layers of the widths in `config.pruning["shapes"]`.

    module: the name of the file, without .py, that its `save_pretrained` writes beside the weights.
    """
    name = f"Pruned{base.__name__}"
    ending = f'from diffusers import {base.__name__}  # noqa: E402\n\n{name} = pruned_class({base.__name__}, "{module}")\n'

    class Pruned(base):
        _auto_class = "AutoModel"  # to_json_string then writes auto_map
        record: dict[str, Any] | None = None  # what pruning.json says, where the network was loaded from a folder that has one

        def __init__(self, *args: Any, pruning: dict[str, Any] | None = None, **config: Any) -> None:
            super().__init__(*args, **config)
            self.register_to_config(pruning=pruning)
            if pruning is not None:
                resize(self, pruning["shapes"])

        @classmethod
        def load_config(cls, *args: Any, **kwargs: Any) -> Any:
            found = super().load_config(*args, **kwargs)
            config = found[0] if isinstance(found, tuple) else found
            for key in ("quantization_config", "auto_map"):
                config.pop(key, None)
            return found

        @classmethod
        def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
            found = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
            network = found[0] if isinstance(found, tuple) else found
            file = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "", RECORD)
            if file.is_file():
                network.record = json.loads(file.read_text(encoding="utf-8"))
            return found

        def to_json_string(self) -> str:
            config = {**json.loads(super().to_json_string()), "quantization_config": REFUSAL}
            return json.dumps(config, indent=2, sort_keys=True) + "\n"

        def save_pretrained(
            self,
            save_directory: Any,
            is_main_process: bool = True,
            save_function: Any = None,
            safe_serialization: bool = True,
            variant: str | None = None,
            max_shard_size: int | str = "10GB",
            push_to_hub: bool = False,
            **kwargs: Any,
        ) -> None:
            """Weights, config, the class file and pruning.json with the hashes of these weights."""
            import diffusers

            if not safe_serialization:
                raise ValueError(
                    f"{name}.save_pretrained: expected safe_serialization=True, got False. Pruned networks have no pickle."
                )
            if push_to_hub:
                raise ValueError(
                    f"{name}.save_pretrained: expected push_to_hub=False, got True. Use push_to_hub(repository) instead."
                )
            folder = Path(save_directory)
            if is_main_process and variant is None:  # a sharded save leaves the single file, and this one the index
                for stale in (WEIGHTS, f"{WEIGHTS}.index.json"):
                    (folder / stale).unlink(missing_ok=True)
            super().save_pretrained(
                folder, is_main_process, save_function, variant=variant, max_shard_size=max_shard_size, **kwargs
            )
            if is_main_process:
                text = SOURCE if SOURCE.endswith(ending) else f"{SOURCE}\n\n{ending}"
                (folder / f"{module}.py").write_text(text, encoding="utf-8")
                stated = {key: value for key, value in (self.config.get("pruning") or {}).items() if key != "shapes"}
                write_record(folder, self.record or {"schema": 1, "form": "compact", **stated}, diffusers=diffusers.__version__)

    taken = inspect.signature(base.__init__)  # config keys reach __init__ only if its signature names them
    own = inspect.Parameter("pruning", inspect.Parameter.KEYWORD_ONLY, default=None)
    Pruned.__init__.__signature__ = taken.replace(parameters=[*taken.parameters.values(), own])  # type: ignore[attr-defined]
    Pruned.__name__ = Pruned.__qualname__ = name
    Pruned.__module__ = module  # as model_index.json is to list it; diffusers would put its cache's place there
    return Pruned
