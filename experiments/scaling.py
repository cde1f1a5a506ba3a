"""Writes docs/scaling.md: what every model needs on a GPU, from the same estimate that `studio check` shows.

python -m experiments.scaling
"""

from __future__ import annotations

from pathlib import Path

from flows.blueprint import blueprints
from flows.load import Lora, Model
from flows.memory import GB, Memory, estimate
from flows.sampler import Sampler

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
CARDS = (24, 40, 80, 141)  # GB
PARTS = (1, 2, 4, 8, 16, 32)
Case = tuple[str, int, int, float]
# name, pixels, rank, guidance of the published recipes
CASES: tuple[Case, ...] = (
    ("sd3-medium", 512, 32, 4.5),
    ("sd35-medium", 512, 32, 4.5),
    ("sd35-medium", 1024, 32, 4.5),
    ("sd35-large", 512, 32, 4.5),
    ("flux-dev", 512, 64, 1.0),
    ("flux-dev", 1024, 64, 1.0),
    ("flux-schnell", 512, 64, 1.0),
    ("sdxl", 1024, 16, 5.0),
)


def need(case: Case, *, train: str, checkpointing: bool, part: int, gpus: int = 1) -> Memory:
    """One GPU's memory in bf16 with one trained step at a time; sharded when there are several."""
    name, pixels, rank, guidance = case
    model = Model(
        random=name,
        train=train,  # type: ignore[arg-type]
        lora=Lora(rank, 2.0 * rank),
        dtype="bfloat16",
        resolution=pixels,
        text_length=512 if "flux" in name else 128,
        gradient_checkpointing=checkpointing,
    )
    sampler = Sampler(steps=10, guidance=guidance)
    shared = {"average": True, "reference": False, "half": True, "split_steps": True}
    found = estimate(model, sampler, samples=max(24, part), part=part, gpus=gpus, sharded=gpus > 1, **shared)
    assert found is not None, name
    return found


def largest_part(limit: float, case: Case, **options) -> str:
    """The most samples at a time that leave a tenth of the card free."""
    fits = [part for part in PARTS if need(case, part=part, **options).total <= 0.9 * limit * GB]
    return str(max(fits)) if fits else "-"


def table(train: str, checkpointing: bool, gpus: int = 1) -> list[str]:
    """A row per case: fixed memory, memory per sample, and the largest part on each card."""
    lines = [
        "| model | pixels | fixed GB | GB per sample | " + " | ".join(f"{card} GB" for card in CARDS) + " |",
        "|---|---|---|---|" + "---|" * len(CARDS),
    ]
    for case in CASES:
        options = {"train": train, "checkpointing": checkpointing, "gpus": gpus}
        one, two = (need(case, part=part, **options) for part in (1, 2))
        each = two.activations - one.activations
        fixed = one.total - each
        parts = " | ".join(largest_part(card, case, **options) for card in CARDS)
        lines.append(f"| {case[0]} | {case[1]} | {fixed / GB:.1f} | {each / GB:.2f} | {parts} |")
    return lines


HEAD = """# Scaling

This page is written by `python -m experiments.scaling`. Its figures are estimates, not measurements: the network is built from its
published configuration without weights, one forward is traced, and the tensors that the backward pass needs are counted. The
formula stands in `flows/memory.py`; `studio check RECIPE` prints the same sum for a recipe. Measure on your own card with
`python -m benchmarks.gpu_image`, which prints peak memory next to the estimate and needs no weights either.

Common to all tables: bfloat16 under autocast, what is trained in float32 with AdamW and averaged weights,
`train.split_steps: true`, text encoders on the CPU, no reference copy. *Fixed* includes decoding one picture; *samples* are those
replayed at a time, `groups_per_step * group_size / (GPUs * gradient_accumulation_steps)`; a tenth of the card stays free; "-" does
not fit.
"""
TAIL = """
## More than one GPU

```
studio train RECIPE --gpus 8                                   gradients averaged (DDP)
studio train RECIPE --gpus 8 --profile fsdp2                   weights, gradients, optimizer and averages sharded
studio train RECIPE --gpus 8 --nodes 2 --name NAME             on each machine, with MASTER_ADDR, MASTER_PORT and NODE_RANK set
studio train RECIPE --gpus 8 --nodes 2 --name NAME --slurm --slurm-option slurm_partition=gpu
```

- A batch is the same however many processes share it: `groups_per_step * group_size` samples are divided among them, and the loss
  weights belong to the whole batch. Divide `gradient_accumulation_steps` by the number of GPUs.
- Runs on several machines need `--runs` on a file system that all of them see. SLURM's `SLURM_NODEID` and `SLURM_JOB_NODELIST` are
  read where `NODE_RANK` and `MASTER_ADDR` are not set.
- `fsdp2` uses torch's `fully_shard` on the blocks that the model class names, after every process has loaded the whole model: the
  loaded weights must fit each GPU once. Checkpoints hold one file per process and are read by any number of processes. The weights
  folder of a checkpoint is whole, as if one process had written it.
- DeepSpeed has no profile: its engine takes the optimizer step that our loop takes itself, and `fsdp2` shards what ZeRO-3 shards.
- Shipped profiles: `ddp`, `fsdp2`, `multi-node`; `--profile FILE` takes one of `accelerate config`.

In the test suite two processes train the tiny FLUX with FSDP2 and the bundled pipeline with DDP, on CPUs: the weights differ from
those of one process by at most 1e-5 (measured: 3e-8 and 1e-6). Nothing on this page has been measured on several GPUs.
"""


def page() -> str:
    sections = [
        ("LoRA, with gradient checkpointing", table("lora", True)),
        ("LoRA, without", table("lora", False)),
        ("All weights, with gradient checkpointing, one GPU", table("full", True)),
        ("All weights, with gradient checkpointing, 8 GPUs, fsdp2", table("full", True, gpus=8)),
    ]
    sizes = "\n".join(f"- `{name}`: {', '.join(entry.hub)}" for name, entry in blueprints().items() if entry.hub)
    tables = "\n".join(f"\n## {title}\n\n" + "\n".join(lines) for title, lines in sections)
    return f"{HEAD}\nModels, by the names that `policy.model.random` takes:\n{sizes}\n{tables}\n{TAIL}"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
