"""Weight files from a folder or the Hub's cache: safetensors only, complete, of the revision that was named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from studio.errors import MissingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

# what a user runs, outside of this package, for a pickle that they trust
CONVERT = (
    'python -c "import sys, torch; from safetensors.torch import save_file; '
    "w = torch.load(sys.argv[1], weights_only=True, map_location='cpu'); w = w.get('state_dict', w); "
    'save_file({k: v.clone().contiguous() for k, v in w.items()}, sys.argv[2])"'
)


def split_revision(model: str) -> tuple[str, str | None]:
    """("owner/name", revision) of "owner/name@revision"; a folder, or a name without "@", has no revision."""
    name, at, revision = model.rpartition("@")
    return (name, revision) if at and not Path(model).exists() else (model, None)


def weight_file(model: str, name: str) -> Path:
    """A weight file of a folder, or of a Hub repository "owner/name[@revision]", as .safetensors; MissingError without it.

    Some models are published as pickles, and reading one may run code: such a file is never opened here. `name` is the
    published one, and what is read is the file of the same name that a user has converted.
    """
    from huggingface_hub import hf_hub_download

    place, revision = split_revision(model)
    safe = str(Path(name).with_suffix(".safetensors"))
    try:
        if is_folder(place):
            published = Path(place) / name
            if not published.is_file() and not (Path(place) / safe).is_file():
                raise FileNotFoundError(f"neither {safe} nor {name} there.")
        else:
            published = Path(hf_hub_download(place, name, revision=revision))
    except OSError as problem:  # not found, not cached, offline, gated: the Hub raises kinds of OSError
        first = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise MissingError(f"reward model {model!r}: expected a file {name}, got {first} {fetch(place)}") from problem
    found = published.with_suffix(".safetensors")
    if not found.is_file():
        raise MissingError(
            f"reward model {published}: expected {found.name} beside it, got a pickle only, which may run code when opened. "
            f"If you trust its origin, convert it once: {CONVERT} {published} {found}"
        )
    return found


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as problem:
        raise MissingError(
            f"reward model {file}: expected a safetensors file, got a damaged one ({problem}). Fetch or convert it again."
        ) from problem


@contextmanager
def no_weights() -> Iterator[None]:
    """A network made within has parameters without memory, to be assigned by `fill`; its buffers have their values."""
    from torch import nn
    from torch.nn.modules.module import register_module_parameter_registration_hook

    hook = register_module_parameter_registration_hook(lambda module, name, value: nn.Parameter(value.to("meta")))
    try:
        yield
    finally:
        hook.remove()


def fill(network: nn.Module, weights: Mapping[str, Tensor], where: str | Path, *, assign: bool = False) -> None:
    """Load all weights; MissingError when one is absent, is left over or has another shape.

    `assign` puts them in the place of the parameters, with their own dtype, instead of copying into these.
    """
    try:
        network.load_state_dict(dict(weights), strict=True, assign=assign)
    except RuntimeError as problem:
        lines = [line.strip() for line in str(problem).splitlines()[1:4]]
        raise MissingError(
            f"reward model {where}: expected exactly the weights of {type(network).__name__}, got another set: "
            f"{' '.join(lines)[:400]} Name the published file, or the architecture that belongs to this one."
        ) from problem


def fetch(place: str) -> str:
    """What to do about a model that is not here."""
    place = split_revision(place)[0]
    if is_folder(place):
        return f"Check the path {place}, or fetch a model into it: `hf download <repo id> --local-dir {place}`."
    return f"Fetch it while online: `hf download {place}`; gated models first need `hf auth login`."


def is_folder(place: str) -> bool:
    """Whether a name means a folder rather than a repository of the Hub ("owner/name")."""
    return Path(place).is_dir() or Path(place).is_absolute() or place.startswith(".") or place.count("/") != 1


def device_of(name: str) -> str:
    """ "auto" is cuda when there is one."""
    import torch

    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def require(module: str, reward: str, extra: str) -> ModuleType:
    """An optional package; MissingError with the extra to install when it is absent or does not load."""
    try:
        return import_module(module)
    except ImportError as problem:
        raise MissingError(
            f"reward {reward!r}: expected the package {module.partition('.')[0]}, got: {problem}. "
            f"Install it: pip install 'alignment-studio[{extra}]'."
        ) from problem
