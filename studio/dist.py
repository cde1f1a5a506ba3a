"""The only file that imports accelerate: processes, gradient averaging, sharding, gathering, trackers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class Processes:
    """One or many processes behind the same calls; one process needs no special case."""

    def __init__(self, *, mixed_precision: str = "no", report_to: list[str] | None = None, folder: str = ".") -> None:
        from accelerate import Accelerator

        on_cpu = not torch.cuda.is_available()
        # set by a launcher's FSDP profile; accelerate itself shards on accelerators only, torch on CPUs as well: one path for both
        shards = os.environ.pop("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed_precision, log_with=report_to or None, project_dir=folder)
        if mixed_precision == "fp16":  # its scaler expects to own the optimizer step and would leave gradients multiplied
            self.accelerator.scaler = None
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.tracking = bool(report_to)
        self.sharded = shards and self.world > 1

    def shard(self, model: nn.Module) -> None:
        """FSDP2 in place, block by block; before an optimizer or a copy of the weights is made. Nothing to do without it."""
        if not self.sharded:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.accelerator.device.type, (self.world,))
        blocks = set(getattr(model, "_no_split_modules", None) or ())
        for module in reversed(list(model.modules())):  # inner blocks first
            if type(module).__name__ in blocks:
                fully_shard(module, mesh=mesh)
        # the outermost too: whoever asks for the weights between two forwards must meet shards
        fully_shard(model, mesh=mesh, reshard_after_forward=True)

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[None]:
        """Inside, every rank holds the whole weights, and forwards exchange nothing: ranks may make different numbers of them.

        For code that reads, not for updates: what is written to the weights inside is lost where they are sharded.
        """
        if not self.sharded:
            yield
            return
        from torch.distributed.fsdp import FSDPModule

        shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
        try:
            for module in shards:
                module.set_reshard_after_forward(False, recurse=False)
                module.unshard()
            yield
        finally:
            for module in shards:
                module.set_reshard_after_forward(True, recurse=False)
                module.reshard()

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, wrap: bool = True
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The network and optimizer in their distributed form; a model that is not wrapped gets its gradients by `backward`."""
        if self.world == 1 or self.sharded:
            return model, optimizer
        if not wrap:
            return model, self.accelerator.prepare(optimizer)
        return self.accelerator.prepare(model, optimizer)

    def gather(self, x: Tensor) -> Tensor:
        """Rows of all ranks, in order of rank."""
        return x if self.world == 1 else self.accelerator.gather(x.contiguous())

    def gather_objects(self, value: Any) -> list[Any]:
        """This value of every rank, in order of rank; for the few small things that are no single tensor."""
        if self.world == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def sum(self, x: Tensor) -> Tensor:
        return x if self.world == 1 else self.accelerator.reduce(x, "sum")

    def largest(self, x: Tensor) -> Tensor:
        return x if self.world == 1 else self.gather(x[None]).max()

    def agree(self, flags: Mapping[str, bool]) -> dict[str, bool]:
        """What any rank wants: a stop on one rank must be a stop on all, at the same step."""
        if self.world == 1:
            return dict(flags)
        wanted = self.sum(torch.tensor([float(v) for v in flags.values()], device=self.accelerator.device))
        return {name: bool(value > 0) for name, value in zip(flags, wanted.tolist(), strict=True)}

    def backward(self, loss: Tensor, *, last: bool, model: nn.Module) -> None:
        """Gradients add up over ranks: they are averaged by the wrapper, and the weights are already global."""
        if self._bare(model):
            self.accelerator.backward(loss)
            if last:
                self.add_gradients(model.parameters())
            return
        with nullcontext() if last or self.world == 1 else self.accelerator.no_sync(model):
            self.accelerator.backward(loss * self.world)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum of the ranks' gradients, for work that does not pass through the wrapper; the weights are already global."""
        for parameter in parameters if self.world > 1 else ():
            if parameter.grad is not None:  # shards are averaged already
                parameter.grad.copy_(parameter.grad * self.world if self.sharded else self.sum(parameter.grad))

    @contextmanager
    def synchronized(self, model: nn.Module, last: bool) -> Iterator[None]:
        """The forward of a part must know as well whether its gradients will be exchanged."""
        with nullcontext() if last or self.world == 1 or self._bare(model) else self.accelerator.no_sync(model):
            yield

    def _bare(self, model: nn.Module) -> bool:
        return self.world > 1 and not self.sharded and not isinstance(model, nn.parallel.DistributedDataParallel)

    def autocast(self):
        return self.accelerator.autocast()

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def track(self, name: str, config: dict[str, Any]) -> None:
        if self.tracking:
            self.accelerator.init_trackers(name, config=config)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """To the trackers; a tracker's error never stops training."""
        if not self.tracking:
            return
        try:
            self.accelerator.log(dict(metrics), step=step)
        except Exception as error:
            self.tracking = False
            self.accelerator.print(f"tracker failed and is off for the rest of this run: {error}")

    def end(self) -> None:
        if self.tracking:
            self.accelerator.end_training()
        if self.world > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
