"""One seed per sample, independent of rank count, batch size and step."""

from __future__ import annotations

from hashlib import sha256


def row_seed(seed: int, prompt_id: str, k: int) -> int:
    """Seed of the k-th sample of a prompt: the first 8 bytes of sha256("seed:prompt_id:k"), sign bit cleared."""
    digest = sha256(f"{seed}:{prompt_id}:{k}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & (2**63 - 1)
