"""One-line shape checks with a message that a user can act on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from studio.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor


def expect(x: Tensor | None, dims: str, *, name: str, hint: str = "", **sizes: int) -> Tensor:
    """`x` itself when its shape is `dims`; ShapeError otherwise.

    `dims` names the dimensions, such as "B T"; a last "*E" stands for any number of further ones. `sizes` fixes names:
    expect(reward, "B", name="GroupRelative: reward", B=48).
    """
    if x is None:
        raise ShapeError(f"{name} is None, expected {_form(dims, sizes)}. {hint or 'Provide it.'}")
    names = dims.split()
    fixed = names[:-1] if names[-1].startswith("*") else names
    shape = tuple(x.shape)
    fits = len(shape) >= len(fixed) if fixed is not names else len(shape) == len(fixed)
    known = dict(sizes)
    for dim, size in zip(fixed, shape, strict=False):
        fits = fits and known.setdefault(dim, size) == size
    if not fits:
        advice = f" {hint}" if hint else " Check the tensor that was passed."
        raise ShapeError(f"{name} has shape {list(shape)}, expected {_form(dims, sizes)}.{advice}")
    return x


def _form(dims: str, sizes: dict[str, int]) -> str:
    names = dims.split()
    form = f"[{', '.join(names)}]"
    return f"{form} = [{', '.join(str(sizes.get(n, n)) for n in names)}]" if any(n in sizes for n in names) else form
