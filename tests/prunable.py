"""Tiny random networks of every kind that can be pruned, each with one forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SD3: dict[str, Any] = dict(
    sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=4,
    joint_attention_dim=16, caption_projection_dim=32, pooled_projection_dim=16, pos_embed_max_size=16,
)  # fmt: skip
FLUX: dict[str, Any] = dict(
    patch_size=1, in_channels=8, num_layers=2, num_single_layers=3, attention_head_dim=16, num_attention_heads=3,
    joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
)  # fmt: skip
UNET: dict[str, Any] = dict(
    sample_size=8, in_channels=4, out_channels=4, block_out_channels=[8, 16], layers_per_block=2, attention_head_dim=[2, 4],
    cross_attention_dim=12, use_linear_projection=True, norm_num_groups=4,
)  # fmt: skip
SDXL: dict[str, Any] = UNET | dict(
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
    transformer_layers_per_block=[1, 3], addition_embed_type="text_time", addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=64,
)  # fmt: skip
SD2: dict[str, Any] = UNET | dict(
    down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
    transformer_layers_per_block=2,
)  # fmt: skip
DIT: dict[str, Any] = dict(
    num_attention_heads=3, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3, sample_size=8, patch_size=2,
    num_embeds_ada_norm=10,
)  # fmt: skip
DECODER: dict[str, Any] = dict(
    vocab_size=24, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4,
    max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=None,
)  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd3": ("SD3Transformer2DModel", SD3),
    "sd35": ("SD3Transformer2DModel", SD3 | dict(dual_attention_layers=[0, 2], qk_norm="rms_norm")),
    "flux": ("FluxTransformer2DModel", FLUX),
    "sdxl": ("UNet2DConditionModel", SDXL),
    "sd2": ("UNet2DConditionModel", SD2),
    "dit": ("DiTTransformer2DModel", DIT),
    "llama": ("LlamaForCausalLM", DECODER | dict(attention_bias=True, mlp_bias=True)),
    "qwen2": (
        "Qwen2ForCausalLM",
        DECODER
        | dict(layer_types=["full_attention", "sliding_attention", "full_attention"], use_sliding_window=True, sliding_window=2),
    ),
    "qwen3": ("Qwen3ForCausalLM", DECODER | dict(head_dim=6)),
}
DECODERS = ("llama", "qwen2", "qwen3")


def network(name: str, seed: int = 0, **changes: Any) -> Any:
    """The network with random weights, all of a size that shows in the answer, in evaluation mode."""
    import diffusers
    import transformers

    kind, config = CONFIGS[name]
    torch.manual_seed(seed)
    if name in DECODERS:
        family = kind.removesuffix("ForCausalLM")
        made = getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**config | changes))
    else:
        made = getattr(diffusers, kind)(**config | changes)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
            elif parameter.ndim == 2:
                parameter.normal_(0, 1.2 / parameter.shape[1] ** 0.5)
    return made.eval()


def forward(name: str, made: Any, rows: int = 2) -> Callable[[], Tensor]:
    """One forward on fixed inputs, in the network's dtype, on its device; on the meta device shapes only."""
    like = next(made.parameters())
    drawn = _inputs(name, rows)
    inputs: dict[str, Any] = {key: x.to(like if x.is_floating_point() else like.device) for key, x in drawn.items()}
    if "text_embeds" in inputs:
        inputs["added_cond_kwargs"] = {key: inputs.pop(key) for key in ("text_embeds", "time_ids")}
    if name in DECODERS:
        return lambda: made(**inputs, use_cache=False).logits
    return lambda: made(**inputs, return_dict=False)[0]


def _inputs(name: str, rows: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws)

    time = torch.linspace(100, 700, rows)
    if name in ("sd3", "sd35"):
        return dict(
            hidden_states=normal(rows, 4, 8, 8),
            encoder_hidden_states=normal(rows, 5, 16),
            pooled_projections=normal(rows, 16),
            timestep=time,
        )
    if name == "flux":
        places = torch.stack(torch.meshgrid(torch.zeros(1), torch.arange(3.0), torch.arange(4.0), indexing="ij"), -1).reshape(12, 3)
        return dict(
            hidden_states=normal(rows, 12, 8), encoder_hidden_states=normal(rows, 5, 16), pooled_projections=normal(rows, 16),
            timestep=time / 1000, guidance=torch.full((rows,), 3.5), img_ids=places, txt_ids=torch.zeros(5, 3),
        )  # fmt: skip
    if name in ("sdxl", "sd2"):
        drawn = dict(sample=normal(rows, 4, 8, 8), timestep=time, encoder_hidden_states=normal(rows, 5, 12))
        size = dict(text_embeds=normal(rows, 16), time_ids=torch.tensor([[8.0, 8, 0, 0, 8, 8]]).repeat(rows, 1))
        return drawn | (size if name == "sdxl" else {})
    if name == "dit":
        return dict(hidden_states=normal(rows, 4, 8, 8), timestep=time.long(), class_labels=torch.arange(rows))
    return dict(input_ids=torch.randint(2, 24, (rows, 7), generator=draws))
