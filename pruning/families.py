"""Where the units of each module class lie: attention, feed-forward, modulation, whole blocks; diffusers and transformers.

A rule takes (name, module, all modules by name) and yields the groups of that module. Classes are told by name, so that
nothing is imported that the network does not use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from pruning.pruned_model import ScatterLinear
from pruning.sites import Group, Kind, Resize, Span, unit_params

Modules = dict[str, nn.Module]
Rule = Callable[[str, Any, Modules], Iterator[Group]]

BLOCKS = {  # class -> its residual streams, in the order of its answer
    "JointTransformerBlock": ("encoder_hidden_states", "hidden_states"),
    "FluxTransformerBlock": ("encoder_hidden_states", "hidden_states"),
    "FluxSingleTransformerBlock": ("encoder_hidden_states", "hidden_states"),
    "BasicTransformerBlock": ("hidden_states",),
    "LlamaDecoderLayer": ("hidden_states",),
    "Qwen2DecoderLayer": ("hidden_states",),
    "Qwen3DecoderLayer": ("hidden_states",),
}
MODULATIONS = ("AdaLayerNormZero", "AdaLayerNormZeroSingle", "SD35AdaLayerNormZeroX")


def attention(name: str, module: Any, modules: Modules) -> Iterator[Group]:
    """Heads of diffusers' attention: rows of q, k, v of all streams, columns of each stream's output.

    Not those that normalize over all heads, share keys between heads or hold q, k, v in one layer, where a head cannot go
    alone; nor those that normalize their input or add it themselves (pixel attention of old U-Nets).
    """
    if type(module).__name__ not in ("Attention", "FluxAttention") or getattr(module, "residual_connection", False):
        return
    heads = module.heads
    if not heads or module.to_k is None or module.fused_projections:
        return
    size = module.to_q.out_features // heads
    if module.to_k.out_features != heads * size or _norm_width(module, "norm_q", size) != size:
        return
    parts = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
    producers = [Span(f"{name}.{part}", size) for part in parts if getattr(module, part, None) is not None]
    outs = [f"{name}.to_out.0"] if f"{name}.to_out.0" in modules else [f"{_parent(name)}.proj_out"]
    if getattr(module, "to_add_out", None) is not None:
        outs.append(f"{name}.to_add_out")
    attributes = ("inner_dim", "inner_kv_dim")
    resizes = [Resize(name, "heads"), *(Resize(name, a, size) for a in attributes if hasattr(module, a))]
    if hasattr(module, "sliceable_head_dim"):
        resizes.append(Resize(name, "sliceable_head_dim"))
    yield _group(name, "heads", heads, producers, [Span(out, size) for out in outs], resizes, modules)


def feed_forward(name: str, module: Any, modules: Modules) -> Iterator[Group]:
    """Neurons of diffusers' FeedForward; a gated one has its value rows first and its gate rows after them."""
    if type(module).__name__ != "FeedForward" or f"{name}.net.2" not in modules or not hasattr(module.net[0], "proj"):
        return
    neurons = module.net[2].in_features
    if not neurons:
        return
    halves = module.net[0].proj.out_features // neurons
    producers = [Span(f"{name}.net.0.proj", 1, half * neurons) for half in range(halves)]
    yield _group(name, "neurons", neurons, producers, [Span(f"{name}.net.2")], [], modules)


def single_mlp(name: str, module: Any, modules: Modules) -> Iterator[Group]:
    """Neurons of a FLUX single block: its output layer reads [attention | neurons]."""
    if type(module).__name__ != "FluxSingleTransformerBlock":
        return
    neurons = module.mlp_hidden_dim
    if not neurons:
        return
    consumer = Span(f"{name}.proj_out", 1, module.proj_out.in_features - neurons)
    resizes = [Resize(name, "mlp_hidden_dim")]
    yield _group(f"{name}.mlp", "neurons", neurons, [Span(f"{name}.proj_mlp")], [consumer], resizes, modules)


def modulation(name: str, module: Any, modules: Modules) -> Iterator[Group]:
    """Outputs of an AdaLN layer: shifts, scales and gates of a block."""
    if type(module).__name__ in MODULATIONS and not isinstance(module.linear, ScatterLinear):
        producer = Span(f"{name}.linear")
        yield _group(f"{name}.linear", "modulation", module.linear.out_features, [producer], [], [], modules)


def decoder_attention(name: str, module: Any, modules: Modules) -> Iterator[Group]:
    """Key-value heads of a Llama or Qwen layer, each with the query heads that share it."""
    if not all(hasattr(module, part) for part in ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim")):
        return
    units = module.k_proj.out_features // module.head_dim
    if not units or _norm_width(module, "q_norm", module.head_dim) != module.head_dim:
        return
    wide = module.q_proj.out_features // units
    producers = [Span(f"{name}.q_proj", wide), *(Span(f"{name}.{part}", module.head_dim) for part in ("k_proj", "v_proj"))]
    yield _group(name, "heads", units, producers, [Span(f"{name}.o_proj", wide)], [], modules)


def decoder_mlp(name: str, module: Any, modules: Modules) -> Iterator[Group]:
    """Neurons of a SwiGLU layer: rows of gate and up, columns of down."""
    if not all(hasattr(module, part) for part in ("gate_proj", "up_proj", "down_proj")):
        return
    producers = [Span(f"{name}.{part}") for part in ("gate_proj", "up_proj")]
    resizes = [Resize(name, "intermediate_size")] if hasattr(module, "intermediate_size") else []
    neurons = module.down_proj.in_features
    if not neurons:
        return
    yield _group(name, "neurons", neurons, producers, [Span(f"{name}.down_proj")], resizes, modules)


def block(name: str, module: Any, modules: Modules) -> Iterator[Group]:
    """A whole block, where its place in a list can be left out: what it computes is added to what it is given.

    Not SD3's last block, which drops the text stream, nor DiT's first, whose embedder the output layer shares.
    """
    if type(module).__name__ not in BLOCKS or not name.rpartition(".")[2].isdigit() or getattr(module, "context_pre_only", False):
        return
    if name.endswith(".0") and getattr(getattr(module, "norm1", None), "emb", None) is not None:
        return
    yield Group(name, "blocks", 1, sum(p.numel() for p in module.parameters()))


RULES: tuple[Rule, ...] = (block, modulation, attention, feed_forward, single_mlp, decoder_attention, decoder_mlp)


def _group(name: str, kind: Kind, units: int, producers, consumers, resizes, modules: Modules) -> Group:
    params = unit_params(modules, producers, consumers)
    return Group(name, kind, units, params, tuple(producers), tuple(consumers), tuple(resizes))


def _norm_width(module: Any, name: str, size: int) -> int:
    """Values that a norm of queries spans; `size` where there is none or it has no weight."""
    weight = getattr(getattr(module, name, None), "weight", None)
    return size if weight is None else weight.numel()


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
