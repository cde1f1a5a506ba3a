"""How much memory the stages of a prune run need on a GPU, before a model is loaded.

The network is built from its blueprint on the meta device. In bytes, for every stage

    weights      b·N              N parameters of b bytes, frozen
    autoencoder  4·V              V parameters
    encoders     b·E              when model.offload_encoders=off
    workspace    1 GB             context and libraries

and on top of it, with g = 2 under guidance and 1 without it, and B = calibration.batch

    scoring      rows I·B·g       I: the most bytes that are alive at once while one row goes forward without gradients
                 gram             8·Σ n² over the widest package, n the inputs of a consumer     (criteria that need Gram matrices)
                 solver           48·n² of the widest consumer: the damped copy, slices, the inverse
                 gradients        (12 + b)·n_p + (A' + P')·B·g    n_p parameters of the layers that may be cut   (taylor)
    updates      activations      (A + P)·R·g    R = learn.rows / learn.parts rows at a time; one step is recomputed at a time.
                                  A: what autograd keeps of one row under gates, P: the largest block when
                                  model.gradient_checkpointing recomputes one at a time
                 record           16·D·R·T       T steps, each of D numbers
                 logits           16·U           U units: logits, gradients, Adam's moments
                 gram, solver     as for scoring, all layers at once, where criterion.rounds refit while a mask is learned
    compensation rows, gram, solver              as for scoring
    pictures     rows I·K·g + decoding 5000·X    K = min(batch, evaluate) pictures, X pixels decoded at once

Stages do not add up. A target of latency keeps a second copy of the weights. Not counted: fragmentation, what a kernel needs for
itself, reward models, the decoder's activations under criterion.reward, and healing, which needs what `studio train` needs.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flows.backbones.sd3 import DECODED_PIXELS
from flows.blueprint import find
from flows.memory import DECODE_BYTES, GB, WORKSPACE
from flows.trace import trace
from pruning.calibrate import packages
from pruning.gating import gated
from pruning.network import backbone_of, one_row
from pruning.sites import Group, linear
from studio.config import component

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from pruning.recipe import PruneRecipe


@dataclass(frozen=True)
class Stage:
    """Bytes on one GPU by use."""

    name: str
    uses: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.uses.values())

    def __str__(self) -> str:
        parts = (f"{name} {size / GB:.1f}" for name, size in self.uses.items() if size >= 0.05 * GB)
        return f"{self.total / GB:.1f} GB = {' + '.join(parts)}"


def memory_plan(recipe: PruneRecipe) -> list[Stage] | None:
    """The stages of this recipe, in order; None for a model without a blueprint."""
    model, blueprint = recipe.model, find(recipe.model.name)
    if blueprint is None:
        return None
    backbone = backbone_of(model)
    network: Any = backbone.network
    groups, width = recipe.sites.of(network), 4 if model.dtype == "float32" else 2
    weights = float(width * sum(p.numel() for p in network.parameters()))
    base = {"weights": weights, "autoencoder": 4.0 * sum(p.numel() for p in backbone.pipeline.vae.parameters())}
    if model.offload_encoders == "off" and not model.random:
        base["encoders"] = float(blueprint.encoder_parameters * width)
    base["workspace"] = WORKSPACE
    guided = 2 if recipe.sampler.guidance > 1 else 1
    if model.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    batch = recipe.calibration.batch * guided
    working = float(live_peak(network, one_row(backbone, model)))
    stages = [Stage("scoring", base | _scoring(recipe, backbone, groups, batch, working, width))]
    if recipe.learned:
        rows = recipe.learn.rows // recipe.learn.parts
        kept = _kept(backbone, model, groups)
        record = 16.0 * prod(backbone.latent_shape) * rows * recipe.sampler.steps
        logits = 16.0 * sum(group.units for group in groups)
        uses = {"activations": kept * rows * guided, "record": record, "logits": logits}
        if recipe.compensation.on and recipe.criterion.options.rounds > 1:
            uses |= _grams(network, groups, 1)
        stages.append(Stage("updates", base | uses))
    if recipe.compensation.on:
        stages.append(
            Stage("compensation", base | {"rows": working * batch} | _grams(network, groups, recipe.calibration.packages))
        )
    count = min(recipe.calibration.batch, recipe.evaluate)
    decoding = float(DECODE_BYTES * min(DECODED_PIXELS, count * backbone.resolution**2))
    pictures = base | {"rows": working * count * guided, "decoding": decoding}
    stages.append(Stage("pictures", pictures | ({"copy": weights} if recipe.target.measure == "latency" else {})))
    return stages


def _scoring(
    recipe: PruneRecipe, backbone: Any, groups: Sequence[Group], batch: int, working: float, width: int
) -> dict[str, float]:
    """What the criterion, or the one that a learned mask starts from, looks at."""
    criterion = recipe.criterion.options
    if recipe.learned:
        if criterion.first is None:
            return {}
        criterion = component("criterion", criterion.first).options
    if "gradient" in criterion.needs:
        names = {span.module for group in groups for span in (*group.producers, *group.consumers)}
        own = [p for name, p in backbone.network.named_parameters() if name.rpartition(".")[0] in names]
        for p in own:
            p.requires_grad_(True)
        kept = _kept(backbone, recipe.model, [])
        for p in own:
            p.requires_grad_(False)
        return {"gradients": float((12 + width) * sum(p.numel() for p in own)), "activations": kept * batch}
    grams = _grams(backbone.network, groups, recipe.calibration.packages) if "gram" in criterion.needs else {}
    return {"rows": working * batch} | grams


def _grams(network: nn.Module, groups: Sequence[Group], count: int) -> dict[str, float]:
    """Second moments of the widest package, and what solving with the widest one needs."""
    modules, sums, widest = dict(network.named_modules()), [0], 0
    for part in packages(groups, count):
        widths = [linear(modules, name).in_features for name in {span.module for group in part for span in group.consumers}]
        sums.append(sum(n * n for n in widths))
        widest = max(widest, *widths, 0)
    return {"gram": 8.0 * max(sums), "solver": 48.0 * widest**2}


def _kept(backbone: Any, model: Any, groups: Sequence[Group]) -> float:
    """Bytes that autograd keeps of one row, and of the block that is recomputed."""
    network = backbone.network
    gates = {group.name: torch.ones(group.units, device="meta", requires_grad=True) for group in groups}
    checkpointed = getattr(network, "is_gradient_checkpointing", False)
    call = one_row(backbone, model, gradients=bool(groups))
    with gated(network, groups, gates):
        first = trace(network, call)
        if not checkpointed:
            return float(first.kept)
        network.disable_gradient_checkpointing()
        whole = trace(network, call)
        network.enable_gradient_checkpointing()
    return float(first.kept + whole.largest)


def live_peak(network: nn.Module, call: Callable[[], Any]) -> int:
    """The most bytes that one call without gradients has alive at once, beyond what was there before."""
    with torch.no_grad(), _Alive() as alive:
        trace(network, call)
    return alive.peak


class _Alive(TorchDispatchMode):
    """Follows every storage from the operation that makes it to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        answer = func(*args, **(kwargs or {}))
        for x in tree_leaves(answer):
            if isinstance(x, torch.Tensor):
                self._follow(x.untyped_storage(), before)
        return answer

    def _follow(self, storage: Any, before: set[int]) -> None:
        key = storage._cdata
        if key in self.sizes or key in before:
            return
        self.sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._end, key)

    def _end(self, key: int) -> None:
        self.now -= self.sizes.pop(key)
