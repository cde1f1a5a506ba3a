"""A bidirectional transformer that fills in masked tokens: from a recipe to the network, and what is asked of it here."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from studio.errors import ConfigError, MissingError
from studio.text.head import token_logp
from studio.text.load import attach_lora, locate
from studio.text.recipe import Language
from studio.text.recompute import awake, recompute_layers

if TYPE_CHECKING:
    from studio.text.masked_diffusion import MaskedPolicy
    from studio.text.masked_recipe import Unmasking

BUNDLED = {"masked-arithmetic": "masked_model"}  # names that need no download
BETWEEN = {"bert": "cls.predictions.transform", "modernbert": "head"}  # architecture -> what stands between its body and its head


class MaskedNetwork(nn.Module):
    """A masked language model of transformers.

    Everything goes through `forward`, so that a wrapper for several processes, or for shards, sees every call.
    """

    critic = None  # none here; files of language models have room for one

    def __init__(self, lm: Any, mask: int) -> None:
        super().__init__()
        self.lm, self.mask = lm, mask  # mask: id of the token that hides another
        self.between = BETWEEN[lm.config.model_type]
        self._no_split_modules = lm._no_split_modules

    def forward(
        self,
        tokens: Tensor,  # [B, L]
        seen: Tensor,  # [B, L] bool, False = filled up
        rows: Tensor,  # [N] of the places that are asked about
        columns: Tensor,  # [N]
        chosen: Tensor | None = None,  # [N] the tokens that belong there
    ) -> Tensor:
        """Natural log probability of the chosen tokens at their places [N] float32, or without them the logits [N, V] float32."""
        body = self.lm.base_model(input_ids=tokens, attention_mask=seen.long())
        hidden = self.lm.get_submodule(self.between)(body.last_hidden_state[rows, columns])
        head = self.lm.get_output_embeddings()
        if chosen is None:
            return head(hidden).float()
        return token_logp(hidden, head.weight, chosen, head.bias).logp


def build_masked(model: Language, sampling: Unmasking, samples: int, provides: frozenset[str], seed: int) -> MaskedPolicy:
    """The policy of a recipe."""
    import torch

    from studio.text.masked_diffusion import MaskedPolicy

    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if model.device == "auto" else model.device)
    lm, tokenizer = load_masked(model)
    torch.manual_seed(seed)  # adapters start from random numbers
    if model.train == "lora":
        attach_lora(lm, model)
        lm.peft_config["default"].task_type = None  # PEFT has no word for this kind of model
    elif model.dtype != "float32":
        lm.float()  # what is trained stays float32
    if model.gradient_checkpointing:
        awake(recompute_layers(lm), True)
    network = MaskedNetwork(lm, tokenizer.mask_token_id).to(device)
    return MaskedPolicy(network, tokenizer, sampling, samples=samples, provides=provides, lora=model.train == "lora")


def load_masked(model: Language) -> tuple[Any, Any]:
    """(masked language model in evaluation mode, tokenizer)."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    place = str(files("studio.text") / BUNDLED[model.id]) if model.id in BUNDLED else locate(model.id)
    how: dict[str, Any] = {"revision": model.revision} if place == model.id else {}
    try:
        lm = AutoModelForMaskedLM.from_pretrained(
            place, dtype=getattr(torch, model.dtype), attn_implementation=model.attention, use_safetensors=True, **how
        )
        tokenizer = AutoTokenizer.from_pretrained(place, **how)
    except (OSError, ValueError, ImportError) as error:
        raise MissingError(
            f"recipe.policy.model.id: expected a masked language model in safetensors, got {model.id!r} "
            f"({str(error).splitlines()[0][:160]}). Use a local folder, or a Hub id that can be reached."
        ) from error
    if lm.config.model_type not in BETWEEN:
        raise ConfigError(
            f"recipe.policy.model.id: expected an architecture of {', '.join(BETWEEN)}, got {lm.config.model_type!r}. "
            "Use another model, or name what stands before its head in studio/text/masked_network.py."
        )
    if tokenizer.mask_token_id is None:
        raise ConfigError(
            f"recipe.policy.model.id: expected a tokenizer with a mask token, got {model.id!r} without. Add one to it."
        )
    return lm.eval(), tokenizer
