"""Which metric of a run is shown where, in words that say what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from studio.chart import LIMIT, number
from studio.report import EPISODES, FIDELITY, MASK, RATIO
from ui.charts import Shown, constant, joint_card, metric_card, twins
from ui.heat import heat, heat_card, stepwise

MOST = 48  # charts in a section
LEAST = 0.005  # share of a step that is still told
GROUPS = {  # section -> what its metrics begin with; the rest is under "More"
    "rewards": ("reward/",),
    "pruning": ("prune/",),
    "guards": ("sample/",),
    "trust": ("ratio/", "kl/"),
    "loss": ("loss/",),
    "time": ("time/", "memory/"),
}
TITLES = {
    "rewards": "Rewards",
    "pruning": "Pruning",
    "guards": "Guards",
    "steps": "Ratio by denoising step",
    "trust": "Ratio, clipping and KL",
    "loss": "Loss, gradients and learning rate",
    "time": "Time and memory",
    "more": "More",
}
FIRST = ("reward/mean", "reward/return", "ratio/mean", "ratio/std", "ratio/clipped", "loss/grad_norm", "loss/learning_rate")
STEPS = ("std", "shift", "above", "below", "grad_norm")  # maps that are open at once
TOLD = {  # beside what the report says
    "reward/mean": "Trained reward, mean over the samples of an iteration.",
    "reward/group_std": "Spread of the reward among the samples of a prompt.",
    "reward/flat_groups": "Share of prompts whose samples all score alike, which teach nothing.",
    "reward/missing": "Share of samples without a score.",
    "kl/old": "Half the mean squared log ratio.",
    "ratio/mean": "Mean likelihood ratio: 1 when the policy has not moved from the one that sampled.",
    "ratio/std": "Spread of the likelihood ratio.",
    "ratio/drift": "Mean distance of the log ratio from 0.",
    "ratio/largest": "Largest distance of a log ratio from 0.",
    "ratio/ess": "Effective sample size as a share of the samples.",
    "loss/grad_norm": "Length of the gradient before it is cut.",
    "time/step": "Seconds of an iteration.",
    "time/sample": "Seconds that sampling takes.",
    "time/reward_wait": "Seconds that training waits for rewards.",
}
WORDS = TOLD | {name: text for name, text in (EPISODES | FIDELITY | MASK).items() if text}


def sections(runs: Sequence[Shown], weight: float) -> dict[str, str]:
    """HTML of every section of curves, empty where there is nothing to show; the first run is the one of the page."""
    names = list(dict.fromkeys(name for run in runs for name in run.curves.names))
    by_step = stepwise(names)
    placed = {metric for rows in by_step.values() for metric in rows.values()}
    found: dict[str, list[str]] = {section: [] for section in TITLES}
    for name in (name for name in names if name not in placed):
        found[next((key for key, starts in GROUPS.items() if name.startswith(starts)), "more")].append(name)
    first: dict[str, Callable[[list[str]], str]] = {
        "rewards": lambda metrics: _against(metrics, runs, weight),
        "time": lambda _: _split(runs),
    }
    html = {}
    for key, metrics in found.items():
        lead = first[key](metrics) if key in first else ""
        body = lead + _cards(metrics, runs, weight)
        html[key] = fold(key, TITLES[key], body, f"{len(metrics)} metrics" if len(metrics) > 1 else "") if metrics else ""
    html["steps"] = _maps(by_step, runs)
    return html


def fold(key: str, title: str, body: str, note: str = "", *, shut: bool = False) -> str:
    """A section that opens and closes; studio.js remembers which are open."""
    soft = f'<span class="soft">{escape(note)}</span>' if note else ""
    top = f'<details class="fold" id="section-{key}" data-fold="{key}"{"" if shut else " open"}>'
    return f"{top}<summary><h2>{title}</h2>{soft}</summary>{body}</details>"


def _cards(metrics: Sequence[str], runs: Sequence[Shown], weight: float) -> str:
    """A chart for each metric that moved, and the values of those that did not."""
    order = sorted(metrics, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name.count("."), name))
    still = {name: value for name in order if (value := constant(name, runs)) is not None}
    alike = twins([name for name in order if name not in still], runs)
    moved = [name for name in order if name not in still and name not in alike]
    cards = "".join(metric_card(name, runs, told=WORDS.get(name, ""), weight=weight) for name in moved[:MOST])
    more = f'<p class="soft">{len(moved) - MOST} more are in metrics.jsonl.</p>' if len(moved) > MOST else ""
    return f'<div class="charts">{cards}</div>{more}{_still(still, alike)}' if cards else _still(still)


def _still(values: Mapping[str, float], alike: Mapping[str, str] | None = None) -> str:
    """Metrics without a chart: those that had one value all the time, and those that repeat another."""
    chips = "".join(f"<span>{escape(name)} <b>{number(value)}</b></span>" for name, value in values.items())
    same = "".join(f"<span>{escape(name)} = {escape(other)}</span>" for name, other in (alike or {}).items())
    told = (("Unchanged so far", chips), ("The same", same))
    return "".join(f'<p class="still"><span class="soft">{what}</span>{part}</p>' for what, part in told if part)


def _against(metrics: Sequence[str], runs: Sequence[Shown], weight: float) -> str:
    """Proxy and gold of one run in one chart; runs that are compared have a chart per metric instead."""
    if len(runs) > 1:
        return ""
    acting = "reward/return" in metrics
    trained = ["reward/return"] if acting else [name for name in metrics if name != "reward/mean"]
    held_out = [f"reward/eval.{name.removeprefix('reward/')}" for name in trained]
    gold = [name for name in metrics if name.startswith("reward/held_out.")]
    wanted = [name for name in ("reward/return" if acting else "reward/mean", *held_out, *gold) if name in metrics]
    chosen = [name for name in wanted if len(runs[0].curves.series(name)[1]) > 1]
    if len(chosen) < 2:
        return ""
    title, told = "Training and evaluation", "What is trained on, and the same in evaluations."
    if gold:
        title = "Proxy and gold"
        told = (
            "The trained reward, the same on held-out prompts, and rewards that are never trained on (held_out): where the first "
        )
        told += "rises while the last fall, the reward is being gamed."
    return joint_card(title, chosen, runs[0], told=told, weight=weight, wide=True)


def _split(runs: Sequence[Shown], last: int = 50) -> str:
    """Where the seconds of a step go, over the newest steps of each run, as bars."""
    bars = ""
    for run in runs:
        shares, whole = split(run, last)
        if len(shares) < 2:
            continue
        colors = [f"--color:var(--line-{i % LIMIT + 1})" for i in range(len(shares))]
        inside = "".join(f'<i style="--share:{100 * s:.1f}%;{c}"></i>' for c, s in zip(colors, shares.values(), strict=True))
        words = "".join(
            f'<li style="{c}"><span>{escape(name)}</span> <b>{share:.0%}</b></li>'
            for c, (name, share) in zip(colors, shares.items(), strict=True)
        )
        who = escape(f"{run.name}: a" if len(runs) > 1 else "A")
        bars += (
            f'<div class="split"><p>{who} step takes <b>{number(whole)} s</b>, the mean '
            f'of the newest {last}.</p><div class="bar" aria-hidden="true">{inside}</div><ul class="legend">{words}</ul></div>'
        )
    return bars


def split(run: Shown, last: int) -> tuple[dict[str, float], float]:
    """Shares of `time/step` that other times take, and its seconds; means over the newest values. Empty when they do not add up."""
    found = {name: run.curves.series(name)[1][-last:] for name in run.curves.names if name.startswith("time/")}
    means = {name.removeprefix("time/").replace("_", " "): float(values.mean()) for name, values in found.items()}
    whole = means.pop("step", 0.0)
    rest = whole - sum(means.values())
    if whole <= 0 or not means or rest < -0.05 * whole:
        return {}, whole
    shares = {name: value / whole for name, value in {**means, "everything else": rest}.items()}
    return {name: share for name, share in shares.items() if share >= LEAST}, whole


def _maps(by_step: dict[str, dict[int, str]], runs: Sequence[Shown]) -> str:
    """A map per metric, the ones that are looked at most in front, the others folded away."""
    names = sorted(by_step, key=lambda name: (_rank(name), name))
    found = {name: {run.name: each for run in runs if (each := heat(run.curves, by_step[name]))} for name in names}
    still = {}
    cards: dict[bool, list[str]] = {True: [], False: []}
    for name, maps in found.items():
        values = {value for each in maps.values() for value in each.cells[each.cells == each.cells].tolist()}
        if len(values) == 1:
            still[f"{name}@0…{max(by_step[name])}"] = values.pop()
        elif values:
            told = RATIO.get(name.removeprefix("ratio/"), "")
            cards[_rank(name) < len(STEPS)].append(heat_card(name, maps, told))
    if not any(cards.values()) and not still:
        return ""
    body = f'<div class="charts maps">{"".join(cards[True])}</div>' if cards[True] else ""
    if cards[False]:
        body += fold(
            "more-steps", f"{len(cards[False])} more by step", f'<div class="charts maps">{"".join(cards[False])}</div>', shut=True
        )
    return fold("steps", TITLES["steps"], body + _still(still), "rows are denoising steps, from noise to picture")


def _rank(name: str) -> int:
    short = name.removeprefix("ratio/")
    return STEPS.index(short) if short in STEPS else len(STEPS)
