"""A random number for every row that depends on what the row is, not on where it stands in the batch."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from studio.types import Rollout


def row_draws(rollout: Rollout, seed: str) -> Tensor:
    """A hash of the seed and of the row's prompt, text, tokens and likelihoods, uniform in [0, 1).  -> [B] float64

    Slots that draw rows stay functions of the rollout: the same on every process, in any order of rows, after a resume. Rows
    that agree in all of this get the same number.
    """
    rows = range(len(rollout.mask))
    keys = rollout.prompts.key if len(rollout.prompts) else [""] * len(rows)
    texts = rollout.samples if isinstance(rollout.samples, list) else [""] * len(rows)
    mask = rollout.mask.cpu()
    said = [x.detach().cpu() for x in (rollout.old.token, rollout.old.logp) if x is not None]
    draws = []
    for b in rows:
        digest = hashlib.sha256("\0".join((seed, keys[b], texts[b])).encode())
        for x in said:
            digest.update(x[b][mask[b]].double().numpy().tobytes())
        draws.append((int.from_bytes(digest.digest()[:8], "big") >> 11) / 2**53)
    return torch.tensor(draws, dtype=torch.float64)
