"""One HTML file about a run: what changed, whether the gain is real, how training went, and what pruning removed.

The page loads nothing: pictures are data URIs, charts are SVG, and there is no script.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from studio import page, removed
from studio.chart import LIMIT, STYLE, Points, change, finite, is_number, line_chart, normalized, number
from studio.files import replace
from studio.run import RunView

PAIRS, EVENTS = 24, 200  # at most; pictures are most of the size of the file
SIGMAS = 3.0  # a guard further than this from the base model is flagged, as in rewards/guards.py
SMALL = 128  # pictures up to this width are enlarged without smoothing
MIME = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
ROUTINE = ("state", "checkpoint", "resumed")
KNOWN = ("prompts", "episodes", "step", "before", "after", "seconds", "guard_sigmas")
PRUNED = {  # figures of a prune run's summary.json
    "params_kept": "Parameters kept",
    "prunable_kept": "Prunable parameters kept",
    "units_kept": "Units kept",
    "flops_kept": "FLOPs kept",
    "latency_ratio": "Time against dense",
    "latent_error": "Latent error",
    "sliced_error": "Error of slicing",
}
MASK = {  # curves of a learned mask, in the order shown
    "prune/error": "Latent error of the gated network on the rows of an update.",
    "prune/expected": "Share of the network that is expected to remain.",
    "prune/multiplier": "Price of what is above the budget.",
    "prune/binarization_gap": "Mean distance of the gates from the mask that would be deployed.",
    "prune/reward_lost": "Reward of the dense network's pictures less that of the gated one's.",
}
PROXY, GOLD, X = "reward/mean", "reward/held_out.", "training step"
RATIO = {  # statistics per denoising step, in the order shown
    "shift": "Mean of the ratio the loss uses, minus one: at 0, clipping holds good and bad samples alike.",
    "std": "Spread of the ratio the loss uses: where steps spread alike, one clip range fits all of them.",
    "raw_shift": "Mean of the plain likelihood ratio minus one: below 0, good samples rarely reach the upper bound.",
    "raw_std": "Spread of the plain likelihood ratio: where it differs between steps, one clip range fits few.",
    "predicted": "The raw shift that follows from how far the mean has moved: to be compared with the raw shift.",
    "above": "Share of decisions clipped from above: about as large as from below when the ratio is centered.",
    "below": "Share of decisions clipped from below: about as large as from above when the ratio is centered.",
    "grad_norm": "Length of the gradient that this denoising step adds: alike when no step dominates training.",
}


EPISODES = {  # curves of a control run, in the order shown; then whatever else the environment tells
    "reward/return": "Mean return of the training episodes that ended in an iteration.",
    "reward/eval.return": "Mean return of whole episodes in copies of their own.",
    "reward/eval.success": "Share of evaluation episodes that end in a goal.",
    "reward/eval.covered": "Goals that at least a quarter of an even share of the successes reaches.",
    "reward/eval.evenness": "Entropy of the goals reached over its largest value.",
    "reward/eval.action_entropy": "Differential entropy of the first action, in nats.",
    "kl/moved": "KL of the old policy from the new one, mean of the last pass.",
    "loss/learning_rate": "",
    "ratio/clipped": "Share of actions that the clip holds back.",
    "time/step": "Seconds of an iteration.",
}
FIDELITY = {  # the estimated ratio of a flow policy against the exact one
    "ratio/fidelity": "Correlation of the estimated log ratio with the exact one.",
    "ratio/gain": "True shift of the action's center over the estimate: above 1 the trust region is wider than it says.",
    "ratio/shift_error": "Distance of the estimated shift from the true one, relative to it.",
    "ratio/wrong": "Share of actions that only one of the two ratios would clip.",
    "ratio/gradient_cosine": "Cosine between the policy gradients of the two ratios.",
}


def write_report(folder: Path) -> Path:
    """Read the run in `folder` and write export/report.html in it; the same run gives the same bytes."""
    view = RunView.open(folder)
    pruned = _prunes(view)
    middle = (_stages, _results, _pictures, _mask) if pruned else (_results, _pictures, _curves)
    body = "".join(part(view) for part in (_head, *middle, _events, _setup))
    promise = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # browsers then load nothing
    text = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{promise}"><title>{escape(view.name)} · alignment studio</title>
<style>{STYLE}{removed.STYLE if pruned else ""}</style></head><body><main>{body}</main></body></html>
"""
    path = view.file("export/report.html")
    path.parent.mkdir(exist_ok=True)
    replace(path, text)
    return path


def _prunes(view: RunView) -> bool:
    return "stages" in (view.summary or {}) or "criterion" in _recipe(view)


def _recipe(view: RunView) -> dict[str, Any]:
    return view.recipe if view.file("recipe.yaml").is_file() else {}


def _head(view: RunView) -> str:
    status, summary, recipe, pruned = view.status, view.summary or {}, _recipe(view), _prunes(view)
    seconds = summary.get("seconds") or status.get("heartbeat", 0) - status.get("started", 0)
    facts = {
        ("Criterion" if pruned else "Algorithm"): page.named(recipe.get("criterion" if pruned else "algorithm")),
        "Model": page.named(recipe.get("policy") or recipe.get("model")),
        **({"Environment": page.named(recipe["env"])} if recipe.get("env") else {}),
        **({"Target": _target(recipe)} if pruned else {}),
        "Steps": f"{status['step']} of {status['total_steps'] or 'unknown'}",
        "Time": f"{number(seconds)} s" if seconds < 600 else f"{number(seconds / 60)} min",
        "State": status["state"],
    }
    if pruned and not status["total_steps"]:
        del facts["Steps"]  # nothing was learned
    facts |= {PRUNED.get(key, key): number(value) for key, value in summary.items() if key not in KNOWN and is_number(value)}
    reason = f'<p class="note">{escape(str(status["reason"]))}</p>' if status.get("reason") else ""
    kind = "Pruning" if pruned else "Control" if recipe.get("env") else "Alignment"
    return f'<p class="eyebrow">{kind} report</p><h1>{escape(view.name)}</h1>{page.facts(facts)}{reason}'


def _target(recipe: Mapping[str, Any]) -> str:
    given = {key: value for key, value in (recipe.get("target") or {}).items() if is_number(value)}
    return ", ".join(f"{key} {value:g}" for key, value in given.items()) or "not recorded"


def _stages(view: RunView) -> str:
    """The table of stages and the map of what was removed."""
    summary = view.summary or {}
    if not summary.get("stages"):
        return page.section("Stages", "There is no summary.json with stages: nothing was removed yet.")
    return removed.stage_table(summary) + removed.removal_map(summary.get("groups") or [])


def _results(view: RunView) -> str:
    """The table of summary.json, under tiles with the first few rewards."""
    summary, pruned = view.summary or {}, _prunes(view)
    before, after = summary.get("before") or {}, summary.get("after") or {}
    title, first, last = ("Dense and pruned", "dense", "pruned") if pruned else ("Before and after", "before", "after")
    if not before and not after:
        work = "pruning" if pruned else "training"
        return page.section(title, f"There is no summary.json with figures from before and after {work}.")
    old, new = (side.get("guards") or {} for side in (before, after))
    sigmas = {name: value for name, value in (summary.get("guard_sigmas") or {}).items() if is_number(value)}
    far, tiles, rows = [name for name in old | new if abs(sigmas.get(name, 0)) > SIGMAS], [], []
    for name, a, b in ((name, before.get(name), after.get(name)) for name in before | after if name != "guards"):
        told = f'{escape(name)}<b>{number(b)}</b><span class="soft">{change(a, b)} from {number(a)}</span>'
        tiles.append(f'<div class="card tile">{told}</div>')
        rows.append(page.row(name, number(a), number(b), change(a, b), ""))
    rows += ['<tr class="group"><th colspan="5">Guards, which no reward looks at</th></tr>'] if old or new else []
    for name, a, b in ((name, old.get(name), new.get(name)) for name in old | new):
        shift = f"{'⚠ ' if name in far else ''}{number(sigmas[name], '+')} σ" if name in sigmas else ""
        rows.append(page.row(name, number(a), number(b), change(a, b), shift, bad=name in far))
    text = f"Over {summary['prompts']} prompts. " if "prompts" in summary else ""
    text = f"Over {summary['episodes']} episodes. " if "episodes" in summary else text
    flagged = f"beyond {SIGMAS:g} σ: {', '.join(far) or 'no guard'}." if sigmas else "it was not recorded for guards."
    shown = bool(sigmas) or (not pruned and bool(old or new))
    text += f"Shift is in standard deviations (σ) of the base model; {flagged}" if shown else ""
    table = page.table(("", first, last, "change", "shift" if shown else ""), rows)
    return page.grid([] if pruned else tiles[:4], "tiles") + page.section(title, text, table)


def _pictures(view: RunView) -> str:
    """Samples of step 0 beside those of the last step, matched by prompt and sample."""
    steps = view.sample_steps()
    if 0 not in steps or steps[-1] == 0:
        lacking = "the dense and the pruned network" if _prunes(view) else "both step 0 and a later step"
        return page.section("Samples", f"There are no samples of {lacking} to compare.")
    keys = ("prompt_id", "sample_id")
    old, new = ({tuple(str(r.get(k)) for k in keys): r for r in view.samples(step)} for step in (0, steps[-1]))
    pairs = [(old[key], new[key]) for key in old if key in new]
    rewards = [[{k: x for k, x in (r.get("rewards") or {}).items() if is_number(x)} for r in pair] for pair in pairs]
    moves = [{name: b[name] - a[name] for name in a if name in b} for a, b in rewards]
    by_name = {name: [m[name] for m in moves if name in m] for name in dict.fromkeys(n for m in moves for n in m)}
    # every reward has its own scale, so a change counts relative to the largest one of that reward
    largest = {name: max(map(abs, values)) or 1.0 for name, values in by_name.items()}
    size = [max((abs(value) / largest[name] for name, value in move.items()), default=-1) for move in moves]
    order = sorted(range(len(pairs)), key=lambda i: -size[i])[:PAIRS]
    sides = ("dense", "pruned") if _prunes(view) else ("step 0", f"step {steps[-1]}")
    text = f"{sides[0].capitalize()} beside {sides[1]}, matched by prompt and sample number: {len(order)} of {len(pairs)} pairs, "
    text += "most changed reward first, so not typical." if by_name else "in the order of the run, without rewards."
    for name, values in by_name.items():
        up, down = sum(x > 0 for x in values), sum(x < 0 for x in values)
        text += f" Over all pairs, {name} rose in {up}, fell in {down} and stayed in {len(values) - up - down}."
    acting = bool(_recipe(view).get("env"))  # few pictures, and large ones: worlds with hundreds of paths
    text = f"{sides[0].capitalize()} beside {sides[1]}." if acting else text
    figures = (_figure(sides, *pairs[i], *rewards[i]) for i in order)
    return page.section("Samples", text, page.grid(figures, "two" if acting else ""))


def _figure(
    sides: Sequence[str], old: Mapping[str, Any], new: Mapping[str, Any], a: Mapping[str, float], b: Mapping[str, float]
) -> str:
    told = [f"{name} {number(a.get(name))} → {number(b.get(name))}" for name in {**a, **b}]
    shown = "".join(f"<div><span>{s}</span>{_sample(record, s)}</div>" for s, record in zip(sides, (old, new), strict=True))
    caption = f"<b>{escape(str(new.get('prompt', 'prompt not recorded')))}</b>{'<br>'.join(map(escape, told))}"
    return page.card(f'<div class="pair">{shown}</div>', caption)


def _sample(record: Mapping[str, Any], side: str) -> str:
    file, told = record["file"], escape(str(record.get("text", "This picture is missing.")))
    if "text" in record or file.suffix not in MIME or not file.is_file():
        return f"<pre>{told}</pre>"
    pixel = ' class="pixel"' if record.get("width", SMALL + 1) <= SMALL else ""
    alt, data = escape(f"{record.get('prompt')}, {side}"), b64encode(file.read_bytes()).decode()
    return f'<img{pixel} alt="{alt}" src="data:{MIME[file.suffix]};base64,{data}">'


def _curves(view: RunView) -> str:
    """Rewards, loss and time; ratio statistics per denoising step; guards."""
    lines = _lines(view)
    if _recipe(view).get("env"):
        return _episodes(lines)
    gold = [name for name in lines if name.startswith(GOLD)]
    wanted = [PROXY, *gold, "loss/total", "time/step"]
    text = "".join(f"{name} was not recorded. " for name in wanted if name not in lines)
    if not gold:
        text += "No held-out reward was recorded, so nothing here tells a real gain from a gamed reward."
    both = _against(lines, gold) if gold and PROXY in lines else ""
    training = page.section("Training", text, both + _single(lines, wanted))
    ratios, guards = _ratios(lines), _single(lines, [name for name in lines if name.startswith("sample/")])
    text = "One line for each trained denoising step t." if ratios else "No ratios were recorded by denoising step."
    training += page.section("Ratio by denoising step", text, ratios)
    return training + page.section("Guards over time", "" if guards else "No guards were recorded in training.", guards)


def _episodes(lines: Mapping[str, Points]) -> str:
    """Returns, coverage and the trust region of a control run, and how faithful its ratio is."""
    told = EPISODES | {name: "" for name in lines if name.startswith("reward/") and name not in EPISODES}
    training = page.section("Training", "", _single(lines, told, "iteration", told))
    faithful = _single(lines, FIDELITY, "iteration", FIDELITY)
    text = "The likelihood ratio that trained, measured against the one from integrating both flows again."
    return training + (page.section("Ratio fidelity", text, faithful) if faithful else "")


def _mask(view: RunView) -> str:
    """How the mask was learned; nothing for criteria that only score."""
    lines = _lines(view)
    found = {name: told for name, told in MASK.items() if name in lines}
    found |= {name: "The mask as it stands, on held-out prompts." for name in lines if name.startswith("reward/eval.")}
    if not found:
        return ""
    text = "One update draws gates, follows the gated trajectories and pulls their ends to those of the dense network."
    return page.section("Learning the mask", text, _single(lines, found, "update", found))


def _lines(view: RunView) -> dict[str, Points]:
    """Every metric that has a finite value, by step."""
    logged: dict[str, list[tuple[float, float | None]]] = {}
    for record in view.metrics().records:
        for name in record.keys() - {"t", "step"}:
            logged.setdefault(name, []).append((record["step"], record[name]))
    return {name: points for name in sorted(logged) if (points := finite(logged[name]))}


def _against(lines: Mapping[str, Points], gold: Sequence[str]) -> str:
    """Proxy and gold in one chart, after a warning when they moved apart."""
    rise = {name: lines[name][-1][1] - lines[name][0][1] for name in (PROXY, *gold)}
    fell = escape(", ".join(name for name in gold if rise[name] < 0 < rise[PROXY]))
    shown = {name: normalized(lines[name]) for name in (PROXY, *gold)[:LIMIT]}
    svg = line_chart(shown, title="Proxy against gold", x_label=X, y_label="share of range", width=1020, height=340)
    note = f'<p class="note">⚠ From first to last record {PROXY} rose while {fell} fell.</p>' if fell else ""
    told = "Each curve fills its own range, from 0 at its lowest to 1 at its highest: compare directions, not heights."
    return f'{note}<div class="wide">{page.card(svg, told)}</div>'


def _ratios(lines: Mapping[str, Points]) -> str:
    found: dict[str, dict[int, Points]] = {name: {} for name in RATIO}
    for name in lines:
        if match := re.fullmatch(r"ratio/(\w+)@(\d+)", name):
            found.setdefault(match[1], {})[int(match[2])] = lines[name]
    cards = []
    for name, by_step in found.items():
        steps, told = sorted(by_step), RATIO.get(name, "Logged for each denoising step.")
        if len(steps) > LIMIT:
            told += f" Shown are {LIMIT} of {len(steps)} steps."
            steps = [steps[round(k * (len(steps) - 1) / (LIMIT - 1))] for k in range(LIMIT)]
        if steps:
            shown = {f"t = {t}": by_step[t] for t in steps}
            cards.append(page.card(line_chart(shown, title=f"ratio/{name}", x_label=X, y_label=name, width=480), told))
    return page.grid(cards, "two")


def _single(lines: Mapping[str, Points], names: Iterable[str], x: str = X, told: Mapping[str, str] | None = None) -> str:
    """Small charts of one metric each, with its first and last value and what `told` says of it."""
    cards = []
    for name in (name for name in names if name in lines):
        caption = f"{number(lines[name][0][1])} → {number(lines[name][-1][1])}"
        caption += f". {told[name]}" if told and told[name] else ""
        size = {"width": 340, "height": 210, "y_label": name.rpartition("/")[2]}
        cards.append(page.card(line_chart({name: lines[name]}, title=name, x_label=x, **size), caption))
    return page.grid(cards)


def _events(view: RunView) -> str:
    odd = [event for event in view.events() if event.get("kind", "state") not in ROUTINE]
    rows = []
    for event in odd[:EVENTS]:  # a loss that is not finite may be an event of every step
        told = "; ".join(f"{key}: {page.plain(event[key])}" for key in event if key not in ("t", "kind", "step"))
        rows.append(page.row(event["kind"], event.get("step", ""), told, bad=event["kind"] == "alarm"))
    text = f"{len(rows)} of {len(odd)} alarms and warnings, in order of time." if odd else "There were no alarms."
    return page.section("Alarms", text, page.table(("kind", "step", ""), rows, "events") if odd else "")


def _setup(view: RunView) -> str:
    recipe, text = view.file("recipe.yaml"), "recipe.yaml is missing."
    if recipe.is_file():
        text = f"<details><summary>recipe.yaml</summary><pre>{escape(recipe.read_text('utf-8'))}</pre></details>"
    recorded = page.section("Recipe", "", f'<div class="card">{text}</div>')
    env = view.env if view.file("env.json").is_file() else {}
    facts = {key: value for key, value in env.items() if key not in ("host", "versions") and value is not None}
    text = "" if env else "env.json is missing."
    return recorded + page.section("Versions", text, page.facts(env.get("versions", {})) + page.facts(facts))
