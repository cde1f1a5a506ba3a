"""Prompt embeddings: each text is encoded once, kept on disk, and the encoders leave the accelerator afterwards."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from flows.backbones.protocol import Condition

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
FORMAT = 1  # raise when the meaning of a stored embedding changes
PROBES, PROBE = 16, 4096  # places per weight file, and bytes at each, that enter a fingerprint


def cache_folder() -> Path:
    """STUDIO_CACHE, or ~/.cache/alignment-studio."""
    return Path(os.environ.get("STUDIO_CACHE") or "~/.cache/alignment-studio").expanduser()


@dataclass(frozen=True)
class EmbeddingStore:
    """Embeddings on disk as safetensors, one file a text, under the fingerprint of what encoded it."""

    folder: Path
    fingerprint: str

    def file(self, text: str) -> Path:
        key = hashlib.sha256(text.encode()).hexdigest()
        return self.folder / "embeddings" / self.fingerprint / key[:2] / f"{key}.safetensors"

    def get(self, text: str) -> Condition | None:
        """The stored embedding, bit for bit; None when there is none that can be read."""
        try:
            return load_file(self.file(text))
        except Exception:  # absent, or cut off by a full disk: encoding again costs a moment and repairs it
            return None

    def put(self, text: str, condition: Condition) -> None:
        """Readers and a crash see the whole file or none; a disk that refuses to be written only costs the speed."""
        file = self.file(text)
        partial = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(save({name: value.cpu().contiguous() for name, value in condition.items()}))
            os.replace(partial, file)
        except OSError:
            with suppress(OSError):
                partial.unlink()


class PromptEncoder:
    """Texts -> one condition each, on the device of the network."""

    def __init__(
        self,
        encode: Callable[[list[str]], Condition],
        *,
        device: torch.device,
        store: EmbeddingStore | None = None,
        encoders: Sequence[nn.Module] = (),
        offload: bool = False,
    ) -> None:
        self.encode, self.device, self.store, self.encoders, self.offload = encode, device, store, encoders, offload

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> list[Condition]:
        """One by one: how a text is rounded must not depend on what else was new to this process."""
        known = {text: self.store.get(text) if self.store else None for text in texts}
        with self._present(any(value is None for value in known.values())):
            done = {text: self._on_device(condition or self._new(text)) for text, condition in known.items()}
        return [done[text] for text in texts]

    def _new(self, text: str) -> Condition:
        with torch.autocast(self.device.type, enabled=False):
            condition = {name: value[0].clone() for name, value in self.encode([text]).items()}
        if self.store:
            self.store.put(text, condition)
        return condition

    def _on_device(self, condition: Condition) -> Condition:
        return {name: value.to(self.device) for name, value in condition.items()}

    @contextmanager
    def _present(self, needed: bool) -> Iterator[None]:
        """The encoders on the accelerator while texts are encoded, in the computer's memory otherwise."""
        moving = needed and self.offload
        try:
            for encoder in self.encoders if moving else ():
                encoder.to(self.device)
            yield
        finally:
            for encoder in self.encoders if moving else ():
                encoder.to("cpu")


def text_encoders(pipeline) -> dict[str, nn.Module]:
    """The pipeline's text encoders that are there, by name."""
    found = {name: getattr(pipeline, name, None) for name in ENCODERS}
    return {name: encoder for name, encoder in found.items() if encoder is not None}


def encoder_fingerprint(pipeline, folder: Path | None, *, model_id: str, revision: str | None, text_length: int) -> str:
    """32 hex digits that change with anything an embedding depends on.

    Class and config of every encoder, dtype, text_length; and of a pipeline in a folder (a snapshot of the Hub is one) name,
    size and a sample of the bytes of every weight and tokenizer file. Without a folder: model id and revision.
    """
    facts: list = [FORMAT, type(pipeline).__name__, text_length]
    for name, encoder in text_encoders(pipeline).items():
        config = encoder.config.to_dict()  # type: ignore[union-attr, operator]
        stable = {key: value for key, value in config.items() if not key.startswith(("_", "transformers_version", "dtype"))}
        facts += [name, type(encoder).__name__, str(next(encoder.parameters()).dtype), stable]
    if folder is None:
        facts += [model_id, revision]
    else:
        parts = [part for part in sorted(folder.iterdir()) if part.name.startswith(("text_encoder", "tokenizer")) and part.is_dir()]
        facts += [_sample(file, folder) for part in parts for file in sorted(part.iterdir()) if file.is_file()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _sample(file: Path, root: Path) -> list:
    """Name, size and a hash of evenly spaced bytes: fine-tuned encoders have the sizes of the ones they came from."""
    size, digest = file.stat().st_size, hashlib.sha256()
    with open(file, "rb") as handle:
        for place in range(PROBES):
            handle.seek(place * max(0, size - PROBE) // max(1, PROBES - 1))
            digest.update(handle.read(PROBE))
    return [file.relative_to(root).as_posix(), size, digest.hexdigest()]
