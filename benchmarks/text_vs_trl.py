"""One GRPO step of a language model here and in TRL's GRPOTrainer: tokens per second, peak memory, and our own overhead.

Same random weights of Qwen2's architecture, prompts, samples per prompt, limit, reward, loss (GRPO without KL, one optimizer step
per rollout), learning rate and Adam constants; every side in a process of its own, in turns. A step is everything from prompts to
changed weights: `studio.rollout.sample` and `studio.update.update` through a recipe here, `GRPOTrainer.train` with a callback
there, without logs, checkpoints and evaluation. Random weights never end a text, so the end-of-text embedding lies in a direction
that all hidden states share: lengths then spread from one token to the limit.

speedup       our written tokens per second over TRL's, median over turns, vocabulary 32k
cpu_speedup   the same per second of processor time: steadier where other work runs
memory_ratio  our growth of the resident size from the loaded model to the peak of the second step over TRL's, vocabulary 150k
live_ratio    the same of the largest sum of live allocations during the third step, as torch's profiler records them
overhead      our whole step over the network calls it cannot do without, at the lengths of the same rollout: the prompts once,
              one token of every row that still runs, forward and backward of the finished rows, and the optimizer's step

    python -m benchmarks.text_vs_trl
    python -m benchmarks.text_vs_trl --gpu      0.5B parameters, bf16 autocast, vocabulary 152k

The --gpu part has not been run: no GPU was at hand when it was written. On a GPU, memory is what torch's allocator reserved.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from string import ascii_lowercase
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the cores to other work

END, PAD = 0, 1
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LARGE = {  # Qwen2.5-0.5B
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
RATE = 1e-6  # too small to change how long texts get


@dataclass(frozen=True)
class Task:
    """What both sides do."""

    folder: str
    prompts: int
    samples: int
    limit: int
    parts: int
    steps: int
    threads: int
    gpu: bool

    @property
    def rows(self) -> int:
        return self.prompts * self.samples


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments.add_argument("--gpu", action="store_true")
    arguments.add_argument("--prompts", type=int, help="a step; default: 4, on a GPU 16")
    arguments.add_argument("--samples", type=int, default=8, help="a prompt")
    arguments.add_argument("--limit", type=int, help="tokens of a completion; default: 48, on a GPU 256")
    arguments.add_argument("--parts", type=int, default=1, help="of the batch, replayed one after the other")
    given = arguments.parse_args()
    prompts, limit = given.prompts or (16 if given.gpu else 4), given.limit or (256 if given.gpu else 48)
    with tempfile.TemporaryDirectory() as root:
        task = Task(root, prompts, given.samples, limit, given.parts, given.rounds + 1, given.threads, given.gpu)
        small, large = (151_936, 151_936) if given.gpu else (32_000, 150_000)
        result = race(written(task, small))
        result |= weighed(replace(written(task, large), steps=3))
    print(json.dumps(result))


def race(task: Task) -> dict[str, Any]:
    """Both sides in turns; the first turn warms up."""
    sides = {"ours": Side(ours, task), "trl": Side(trl, task)}
    turns = [{name: side.ask("compare") for name, side in sides.items()} for _ in range(task.steps)][1:]
    for side in sides.values():
        side.end()
    speeds = {name: [turn[name]["tokens"] / turn[name]["seconds"] for turn in turns] for name in sides}
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["trl"], strict=True)]
    works = {name: [turn[name]["tokens"] / turn[name]["cpu"] for turn in turns] for name in sides}
    overheads = [turn["ours"]["seconds"] / turn["ours"]["bare"] for turn in turns]

    def middle(side: str, name: str) -> float:
        return round(statistics.median(turn[side][name] for turn in turns), 4)

    return {
        "speedup": round(statistics.median(ratios), 3),
        "speedup_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "cpu_speedup": round(statistics.median(a / b for a, b in zip(works["ours"], works["trl"], strict=True)), 3),
        "overhead": round(statistics.median(overheads), 3),
        "overhead_range": [round(min(overheads), 3), round(max(overheads), 3)],
        "tokens_per_s": {name: round(statistics.median(values), 1) for name, values in speeds.items()},
        "seconds": {name: middle(name, "seconds") for name in sides}
        | {f"ours.{name}": middle("ours", name) for name in ("sample", "update", "bare", "bare_sample", "bare_update")},
        "tokens": {name: middle(name, "tokens") for name in sides},
        "lengths": turns[-1]["ours"]["lengths"],
        "rows": task.rows,
        "limit": task.limit,
        "threads": task.threads,
    }


def weighed(task: Task) -> dict[str, Any]:
    """Each side alone: a step that makes the optimizer's state, one for the peak, one for the live allocations."""
    found: dict[str, dict[str, float]] = {}
    for name, work in (("ours", ours), ("trl", trl)):
        side = Side(work, task)
        side.ask("step")
        peak = side.ask("step")["peak"]
        found[name] = {"peak": peak, "live": side.ask("weigh")["live"]}
        side.end()
    return {
        "memory_ratio": round(found["ours"]["peak"] / found["trl"]["peak"], 3),
        "live_ratio": round(found["ours"]["live"] / found["trl"]["live"], 3),
        "megabytes": {f"{name}.{what}": round(value / 1e6) for name, pair in found.items() for what, value in pair.items()},
    }


class Side:
    """A trainer in a process of its own that takes a step when it is asked to."""

    def __init__(self, work: Callable[..., None], task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, other = context.Pipe()
        self.process = context.Process(target=work, args=(task, other), daemon=True)
        self.process.start()
        other.close()
        self.line.recv()  # it has loaded everything

    def ask(self, what: str) -> dict[str, Any]:
        self.line.send(what)
        return self.line.recv()

    def end(self) -> None:
        self.line.close()
        self.process.join()


def ours(task: Task, line: Any) -> None:
    """Iterations as the loop runs them, and after each its bare network calls."""
    import torch

    from studio.config import build
    from studio.dist import Processes
    from studio.parts import build_parts
    from studio.recipe import Recipe
    from studio.rollout import sample
    from studio.update import update

    torch.set_num_threads(task.threads)
    recipe = build(Recipe, settings(task))
    processes = Processes(mixed_precision=recipe.train.mixed_precision, folder=task.folder)
    parts = build_parts(recipe)
    policy: Any = parts.policy
    idle = torch.optim.AdamW(list(policy.trainable()), lr=0.0, weight_decay=0.0)  # the bare steps change nothing
    meter = Meter(policy.model, task, line)
    for step in range(task.steps):
        began = meter.begin()
        batch, _ = sample(recipe, parts, processes, step)
        sampled = meter.since(began)
        update(recipe, parts, processes, batch, policy.model, step)
        lengths = batch.rollout.mask.sum(1).tolist()
        told = meter.end(sum(lengths))
        told |= {"sample": sampled, "update": told["seconds"] - sampled, "lengths": sorted(lengths)}
        if meter.what == "compare":
            with processes.autocast():
                told["bare_sample"] = meter.timed(lambda batch=batch: bare_sampling(policy.model, batch.rollout, task))
                told["bare_update"] = meter.timed(lambda batch=batch: bare_learning(policy.model, batch.rollout, task, idle))
            told["bare"] = told["bare_sample"] + told["bare_update"]
        line.send(told)
    parts.rewards.close()
    parts.held_out.close()


def trl(task: Task, line: Any) -> None:
    """GRPOTrainer's own loop, which waits at the beginning of every step until it is asked to take it."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(task.threads)
    warnings.simplefilter("ignore", FutureWarning)
    lm = AutoModelForCausalLM.from_pretrained(task.folder, dtype=torch.float32)
    meter, tokens = Meter(lm, task, line), []

    class Turns(TrainerCallback):
        def on_step_begin(self, *given: Any, **named: Any) -> None:
            meter.begin()

        def on_step_end(self, *given: Any, **named: Any) -> None:
            line.send(meter.end(tokens[-1]))

    def scored(completions: Any, completion_ids: Any, **named: Any) -> list[float | None]:
        tokens.append(sum(map(len, completion_ids)))
        return reward(completions, None)

    config = GRPOConfig(
        output_dir=f"{task.folder}/trl",
        max_steps=task.steps,
        per_device_train_batch_size=task.rows // task.parts,
        gradient_accumulation_steps=task.parts,
        num_generations=task.samples,
        max_completion_length=task.limit,
        loss_type="grpo",
        beta=0.0,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        bf16=task.gpu,
        use_cpu=not task.gpu,
        use_liger_kernel=task.gpu and find_spec("liger_kernel") is not None,
        save_strategy="no",
        logging_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = Dataset.from_dict({"prompt": prompt_texts(task)})
    tokenizer = AutoTokenizer.from_pretrained(task.folder)
    trainer = GRPOTrainer(lm, scored, config, data, processing_class=tokenizer, callbacks=[Turns()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()


class Meter:
    """Times and weighs the steps of one side, on demand."""

    def __init__(self, lm: Any, task: Task, line: Any) -> None:
        self.task, self.line = task, line
        for parameter in lm.parameters():
            parameter.detach().sum()  # brings what is only mapped from the file into memory
        self.loaded = sum(4.0 * p.numel() for p in lm.parameters()) if task.gpu else resident()
        self.what, self.began, self.worked, self.held, self.seen = "", 0.0, 0.0, 0.0, None
        line.send("loaded")

    def begin(self) -> float:
        """Waits until the step is wanted."""
        self.what = self.line.recv()
        if self.task.gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self.held = float(torch.cuda.memory_allocated())
        elif self.what == "weigh":
            from torch.profiler import ProfilerActivity, profile

            self.seen = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.seen.__enter__()
        self.began, self.worked = self.now(), time.process_time()
        return self.began

    def end(self, tokens: int) -> dict[str, Any]:
        seconds = self.since(self.began)
        told: dict[str, Any] = {"tokens": tokens, "seconds": seconds, "cpu": time.process_time() - self.worked}
        if self.task.gpu:
            import torch

            peak, most = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
            return told | {"peak": peak - self.loaded, "live": most - self.held}
        told["peak"] = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.loaded
        if self.seen is not None:
            self.seen.__exit__(None, None, None)
            told["live"], self.seen = live(self.seen), None
        return told

    def timed(self, work: Callable[[], None]) -> float:
        began = self.now()
        work()
        return self.since(began)

    def since(self, began: float) -> float:
        return self.now() - began

    def now(self) -> float:
        if self.task.gpu:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()


def bare_sampling(network: Any, rollout: Any, task: Task) -> None:
    """Every prompt once, then one token of every row that still runs; rows leave as they do in the loop."""
    import torch

    from studio.text.cache import buffers, take
    from studio.text.generate import LEAVE

    length, prompt = rollout.mask.sum(1), rollout.trace.prompt_length
    own, which = rollout.group.unique(return_inverse=True)
    first = torch.stack([(rollout.group == group).nonzero()[0, 0] for group in own])
    tokens = rollout.trace.prompt[first]
    width = tokens.shape[1]
    cache = buffers(network.lm.config.num_hidden_layers, width + task.limit)
    with torch.no_grad():
        network(tokens, torch.arange(len(own), device=tokens.device), prompt[first] - 1, cache=cache)
        take(cache, which)
        for t in range(1, int(length.max())):
            alive = (length > t).nonzero()[:, 0]
            if len(alive) <= (1 - LEAVE) * len(length):
                take(cache, alive)
                length, prompt = length[alive], prompt[alive]
            place, row = torch.arange(width + t, device=prompt.device), torch.arange(len(prompt), device=prompt.device)
            mask = ((place < prompt[:, None]) | (place >= width))[:, None, None]
            network(
                torch.full_like(row, PAD)[:, None],
                row,
                torch.zeros_like(row),
                cache=cache,
                mask=mask,
                positions=(prompt + t - 1)[:, None],
            )


def bare_learning(network: Any, rollout: Any, task: Task, optimizer: Any) -> None:
    """Forward and backward of the finished rows, the head on completions only, and a step of the optimizer."""
    from torch.nn.functional import cross_entropy

    from studio.text.tokens import pack

    for rows in parts_of(task):
        part = rollout.at(rows)
        places = pack(part.trace, part.mask)
        hidden = network.lm.base_model(input_ids=places.tokens).last_hidden_state[places.row, places.column]
        cross_entropy(network.lm.lm_head(hidden).float(), places.chosen).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def parts_of(task: Task) -> list[slice]:
    size = task.rows // task.parts
    return [slice(at, at + size) for at in range(0, task.rows, size)]


def settings(task: Task) -> dict[str, Any]:
    """Our recipe."""
    prompts = f"{task.folder}/prompts.txt"
    return {
        "policy": {
            "name": "text",
            "model": {"id": task.folder, "device": "cuda" if task.gpu else "cpu"},
            "sampling": {"limit": task.limit, "batch": task.rows, "chat": "off"},  # TRL too writes all rows at once
        },
        "algorithm": {"name": "grpo", "kl": 0.0},
        "prompts": {"name": "file", "train": prompts, "test": prompts},
        "rewards": {"function": {"weight": 1.0, "target": "benchmarks.text_vs_trl:reward", "reads": "text"}},
        "train": {
            "steps": task.steps,
            "groups_per_step": task.prompts,
            "group_size": task.samples,
            "gradient_accumulation_steps": task.parts,
            "learning_rate": RATE,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "ema": 0.0,
            "mixed_precision": "bf16" if task.gpu else "no",
            "ratio_tolerance": 1e9 if task.gpu else 1e-4,
        },
    }


def reward(samples: list[str], prompts: Any) -> list[float | None]:
    """Something that costs nothing: how many characters are even digits."""
    return [sum(map(text.count, "02468")) / (1 + len(text)) for text in samples]


def prompt_texts(task: Task) -> list[str]:
    return Path(f"{task.folder}/prompts.txt").read_text().splitlines()


def written(task: Task, vocabulary: int) -> Task:
    """The model, its tokenizer and the prompts, in a folder of their own."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    task = replace(task, folder=f"{task.folder}/{vocabulary}")
    words = ["<end>", "<pad>", *ascii_lowercase]
    table = {word: i for i, word in enumerate([*words, *(f"{i}_" for i in range(vocabulary - len(words)))])}
    tokenizer = Qwen2Tokenizer(vocab=table, merges=[], eos_token="<end>", pad_token="<pad>", unk_token="<pad>")
    tokenizer.save_pretrained(task.folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        **(LARGE if task.gpu else SMALL),  # type: ignore[arg-type]
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )
    lm = Qwen2ForCausalLM(config)
    let_end(lm, task.limit / 2)
    lm.save_pretrained(task.folder)
    chance = random.Random(0)
    lines = ["".join(chance.choices(ascii_lowercase, k=chance.randint(8, 24))) for _ in range(4 * task.prompts)]
    Path(f"{task.folder}/prompts.txt").write_text("\n".join(lines))
    return task


def let_end(lm: Any, mean: float) -> None:
    """Texts end with chance 1/mean at every token: one coordinate is the same for all hidden states, and the end's embedding."""
    import torch

    table = lm.get_input_embeddings().weight
    with torch.no_grad():
        table[:, 0] = 1.0
        for layer in lm.model.layers:  # nothing is added to the coordinate
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        table[END] = 0.0
        tokens = torch.randint(2, len(table), (4, 64), generator=torch.Generator().manual_seed(0))
        hidden = lm.model(input_ids=tokens).last_hidden_state.flatten(0, 1)
        others = (hidden @ table[2:].T).logsumexp(-1)
        table[END, 0] = (others.mean() - torch.tensor(mean).log()) / hidden[:, 0].mean()


def resident() -> float:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * resource.getpagesize())


def live(seen: Any) -> float:
    """The largest sum of what torch allocated and had not freed yet, in bytes."""
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return float(peak)


if __name__ == "__main__":
    main()
