"""How trained weights get to the server that writes completions: saved to a folder, which it is told to load."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from studio.post import ask
from studio.text.engine import Engine, EngineError, short


class Handover:
    """Brings the weights of the moment to a server: saved to a folder, which it is told to load. Remembers what it last gave.

    Every time the folder, and the name of an adapter, is a new one: servers keep what they know of a name.
    """

    def __init__(self, engine: Engine, *, lora: bool) -> None:
        self.engine, self.lora = engine, lora
        self.step: int | None = None  # of the last handover
        self.name = ""  # what the server calls the model that it was last given
        self.folder: Path | None = None
        self._own = None if engine.folder else tempfile.TemporaryDirectory(prefix="studio-engine-")  # gone with this process

    def at(self, step: int | None, save: Callable[[Path], None]) -> str:
        """The model to ask for in this iteration, with weights not older than `every` iterations; step None = with those of now."""
        if step is None or self.step is None or not 0 <= step - self.step < self.engine.every:
            self._give(save)
            self.step = step
        return self.name

    def _give(self, save: Callable[[Path], None]) -> None:
        own = f"studio-{secrets.token_hex(8)}"
        folder = Path(self._own.name if self._own else self.engine.folder) / own
        try:
            save(folder)
            (folder / "critic.safetensors").unlink(missing_ok=True)  # a server would take it for a part of the model
            name = self._load_adapter(own, str(folder.absolute())) if self.lora else self._load_whole(str(folder.absolute()))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.name, self.folder = name, folder

    def _load_adapter(self, name: str, folder: str) -> str:
        prefix = "/v1" if self.engine.kind == "vllm" else ""
        tell(self.engine, f"{prefix}/load_lora_adapter", {"lora_name": name, "lora_path": folder})
        if self.name:
            tell(self.engine, f"{prefix}/unload_lora_adapter", {"lora_name": self.name})
        return name

    def _load_whole(self, folder: str) -> str:
        if self.engine.load:
            tell(self.engine, self.engine.load, {"model_path": folder})
        elif self.engine.kind == "sglang":
            tell(self.engine, "/update_weights_from_disk", {"model_path": folder})
        else:
            tell(self.engine, "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})
            tell(self.engine, "/reset_prefix_cache", {})
        return self.name or served_model(self.engine)


def served_model(engine: Engine) -> str:
    """The name to ask for: the option, or the first model that a vLLM server lists; SGLang serves one, and asks for none."""
    if engine.model or engine.kind == "sglang":
        return engine.model if engine.kind == "vllm" else ""
    answer = ask(engine.service, "/v1/models")
    try:
        return str(answer["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as problem:
        raise EngineError(
            f"engine {engine.url}: expected a list of models, got {short(answer)}. Check the address, or set engine.model."
        ) from problem


def tell(engine: Engine, path: str, body: Mapping[str, Any]) -> None:
    """A request whose answer says no more than whether it worked."""
    answer = ask(engine.service, path, body, plain=True)
    if isinstance(answer, dict) and answer.get("success") is False:
        raise EngineError(
            f"engine {engine.url}{path}: expected the weights to be loaded, got {short(answer)}. Check that the server sees "
            "engine.folder and serves the model that is trained."
        )
