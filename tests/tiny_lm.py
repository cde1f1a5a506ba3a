"""A language model small enough to be made in a test: digits and signs, two layers, random weights."""

from __future__ import annotations

import torch

from studio.text.load import attach_lora
from studio.text.network import TokenNetwork
from studio.text.policy import TokenPolicy
from studio.text.recipe import Language, Text
from studio.text.sampling import Sampling

WORDS = ["<end>", "<pad>", *"0123456789+-*= "]
DIGITS = {word: i for i, word in enumerate(WORDS)}


def tiny_tokenizer(template: str | None = None):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(DIGITS, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    from tokenizers import decoders

    inner.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<pad>")
    made.chat_template = template
    return made


def tiny_lm(seed: int = 0, **changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "eos_token_id": 0}
    torch.manual_seed(seed)
    config = LlamaConfig(**{**settings, "tie_word_embeddings": True, "initializer_range": 0.2, **changes})
    return LlamaForCausalLM(config).eval()


def tiny_policy(
    *, lora: bool = False, critic: bool = False, limit: int = 16, seed: int = 0, recompute: bool = False, **sampling
) -> TokenPolicy:
    lm, options = tiny_lm(seed), Text(critic=critic)
    if lora:
        attach_lora(lm, Language(train="lora"))
        with torch.no_grad():
            for name, p in lm.named_parameters():
                if "lora_B" in name:  # zero at the start: nothing would move
                    p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    network = TokenNetwork(lm, critic=critic, recompute=recompute)
    if network.critic is not None:
        torch.nn.init.normal_(network.critic.weight, generator=torch.Generator().manual_seed(3))
    return TokenPolicy(network, tiny_tokenizer(), Sampling(limit=limit, **sampling), provides=options.provides, lora=lora)
