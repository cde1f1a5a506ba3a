"""One BGPO update of a masked-diffusion language model: peak memory against the number M of Monte-Carlo masks a completion.

memory_ratio: the largest sum of live allocations during one update, as torch's profiler records them, at M = 64 over that at
M = 4, each mask replayed alone (train.split_steps). whole_memory_ratio: the same from M = 4 to 16 with all masks in one replay.

    python -m benchmarks.masked_memory
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
RUNS = ((4, "split"), (16, "split"), (64, "split"), (4, "whole"), (16, "whole"))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=16)
    arguments.add_argument("--limit", type=int, default=48, help="tokens of a completion")
    arguments.add_argument("--threads", type=int, default=1)
    given = arguments.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    found, seconds = {}, {}
    for samples, mode in RUNS:
        began = time.perf_counter()
        found[f"{samples} {mode}"] = peak(samples, mode == "split", given.rows, given.limit)
        seconds[f"{samples} {mode}"] = round(time.perf_counter() - began, 1)
    result = {
        "memory_ratio": round(found["64 split"] / found["4 split"], 3),
        "whole_memory_ratio": round(found["16 whole"] / found["4 whole"], 3),
        "megabytes": {name: round(value / 1e6, 1) for name, value in found.items()},
        "seconds": seconds,
        "rows": given.rows,
        "tokens": given.limit,
        "threads": given.threads,
    }
    print(json.dumps(result))


def peak(samples: int, split: bool, rows: int, limit: int) -> float:
    """The largest sum of live allocations of one update, in bytes: credit, every replay with its backward pass, the step."""
    import torch

    from benchmarks.prune_memory import allocated
    from studio.algorithms.bgpo import BGPO
    from studio.core import assign_credit, policy_loss
    from studio.replay import positions

    own, objective = policy(samples, limit), BGPO().objective()
    optimizer = torch.optim.AdamW(own.trainable(), lr=1e-4)
    rollout = written(own, rows)

    def update() -> None:
        credit = assign_credit(objective, rollout)
        for steps in positions(rollout, split):
            part = rollout.at(slice(None), steps)
            policy_loss(objective, own.evaluate(part), part, credit.at(slice(None), steps))[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    update()  # the optimizer's memory is there from the first step on
    return allocated(update)


def policy(samples: int, limit: int):
    """A small BERT over characters with random weights."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    from studio.text.masked_diffusion import MaskedPolicy
    from studio.text.masked_network import MaskedNetwork
    from studio.text.masked_pretrain import masked_tokenizer
    from studio.text.masked_recipe import MaskedText, Unmasking

    tokenizer = masked_tokenizer()
    sizes: Any = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(0)
    lm = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes)).eval()
    network = MaskedNetwork(lm, tokenizer.mask_token_id)  # type: ignore[arg-type]
    sampling = Unmasking(limit=limit, block=16, steps=4)
    return MaskedPolicy(network, tokenizer, sampling, samples=samples, provides=MaskedText.provides)


def written(own, rows: int):
    """A rollout whose completions all reach the limit and hide half of it under every mask, so that only M differs."""
    import torch

    from studio.types import Prompts

    texts = [f"{row}+{row}=" for row in range(rows)]
    prompts = Prompts(texts, texts, [{}] * rows)
    made = own.sample(prompts, group=torch.arange(rows) // 4, seeds=list(range(rows)), step=0)
    masks = torch.zeros_like(made.trace.hidden)
    masks[:, :, ::2] = True
    trace = replace(made.trace, hidden=masks, length=torch.full_like(made.trace.length, masks.shape[2]))
    reward = torch.rand(rows, generator=torch.Generator().manual_seed(0))
    rollout = replace(made, trace=trace, mask=torch.ones_like(made.mask), reward=reward)
    with torch.no_grad():
        fits = [own.evaluate(rollout.at(slice(None), slice(k, k + 1))).fit for k in range(masks.shape[1])]
    return replace(rollout, old=replace(rollout.old, fit=torch.cat(fits, 1)))


if __name__ == "__main__":
    main()
