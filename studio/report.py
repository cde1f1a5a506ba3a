"""One HTML file about a run: what changed, whether the gain is real, and what training looked like.

The page loads nothing: pictures are data URIs, charts are SVG, and there is no script.
"""

from __future__ import annotations

import math
import re
import shlex
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from studio.chart import LIMIT, Points, finite, line_chart
from studio.files import replace
from studio.run import RunView

PAIRS = 24  # pictures are most of the size of the file
EVENTS = 200
SIGMAS = 3.0  # a guard further than this from the base model is flagged, as in rewards/guards.py
SMALL = 128  # pictures up to this width are enlarged without smoothing
MIME = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
ROUTINE = ("state", "checkpoint", "resumed")
KNOWN = ("prompts", "before", "after", "seconds", "guard_sigmas")
PROXY, GOLD = "reward/mean", "reward/held_out."
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
STYLE = """
:root{color-scheme:light dark;--paper:#f7f7f5;--card:#fff;--ink:#1b1d21;--soft:#5f656e;--edge:#e4e4e0;--grid:#ebebe8;
--axis:#a3a39f;--bad:#b3261e;--bad-paper:#fdeceb;--accent:#0b62a8}
@media(prefers-color-scheme:dark){:root{--paper:#131417;--card:#1c1e22;--ink:#e9e9e6;--soft:#a2a8b1;--edge:#303339;
--grid:#2a2d32;--axis:#62666d;--bad:#ff8a80;--bad-paper:#3a1f1f;--accent:#6db8f2;--line-1:#56b4e9;--line-2:#ff7f3f;
--line-3:#2fc79a;--line-4:#e39cc4;--line-5:#e69f00;--line-6:#8fb8ff;--line-7:#f0e442;--line-8:#b8b8b8}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1100px;margin:auto;padding:56px 24px 96px}h1,h2{line-height:1.2;letter-spacing:-.02em;margin:0 0 8px}
h1{font-size:2.1rem;overflow-wrap:anywhere}h2{font-size:1.35rem;margin-top:64px}h3{font-size:1rem;margin:36px 0 4px}
p{margin:0 0 16px;max-width:76ch;overflow-wrap:anywhere}.soft,dt,figcaption,.pair span,thead th{color:var(--soft)}
.eyebrow{color:var(--accent);font-size:.8rem;font-weight:600;letter-spacing:.08em;text-transform:uppercase;margin:0}
dl{display:flex;flex-wrap:wrap;gap:12px 40px;margin:24px 0 0}dt,.tile span,figcaption,thead th,.group th{font-size:.84rem}
dd{margin:0;font-weight:600;overflow-wrap:anywhere}.grid{display:grid;gap:20px;margin-top:16px;align-items:start}
.tiles{grid-template-columns:repeat(auto-fit,minmax(min(100%,200px),1fr));margin-top:32px}
.two{grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr))}
.three{grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))}
.card{background:var(--card);border:1px solid var(--edge);border-radius:14px;padding:18px;margin:16px 0 0;min-width:0;
overflow-x:auto}.grid>.card{margin:0}.tile b{display:block;font-size:1.7rem;line-height:1.3;letter-spacing:-.02em}
svg{display:block;width:100%;height:auto;min-width:280px}.wide svg{min-width:640px}.two svg{min-width:400px}
figcaption{margin-top:10px}figcaption b{display:block;color:var(--ink);font-weight:600;overflow-wrap:anywhere}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:10px}.pair span{display:block;font-size:.75rem;margin-bottom:4px}
.pair img{display:block;width:100%;border-radius:8px;background:var(--edge)}.pixel{image-rendering:pixelated}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{padding:9px 14px;text-align:right;
border-bottom:1px solid var(--edge);font-weight:500}tr>:first-child{text-align:left;padding-left:0}
tr>:last-child{padding-right:0}.group th{padding-top:24px;color:var(--soft)}tbody tr:last-child>*{border-bottom:0}
td.words{text-align:left;overflow-wrap:anywhere;width:99%}.bad>*{color:var(--bad);font-weight:600}
.note{background:var(--bad-paper);color:var(--bad);border-radius:10px;padding:10px 16px;margin-top:20px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font:.8rem/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
margin:12px 0 0}.pair pre{margin:0}summary{cursor:pointer;font-weight:600}
"""


def write_report(folder: Path) -> Path:
    """Read the run in `folder` and write export/report.html in it; the same run gives the same bytes."""
    view = RunView.open(folder)
    body = [_head(view), _results(view), _pictures(view), _curves(view), _events(view), _setup(view)]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the browser holds the page to its promise
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(view.name)} · alignment studio</title><style>{STYLE}</style></head>
<body><main>{"".join(body)}</main></body></html>
"""
    path = view.file("export/report.html")
    path.parent.mkdir(exist_ok=True)
    replace(path, page)
    return path


def _head(view: RunView) -> str:
    recipe = view.recipe if view.file("recipe.yaml").is_file() else {}
    status, summary = view.status, view.summary or {}
    seconds = summary.get("seconds") or status.get("heartbeat", 0) - status.get("started", 0)
    total = f" of {status['total_steps']}" if status["total_steps"] else ""
    facts = {
        "Algorithm": _named(recipe.get("algorithm"), "name"),
        "Model": _named(recipe.get("policy") or recipe.get("model"), "model", "id", "name"),
        "Steps": f"{status['step']}{total}",
        "Time": _duration(seconds) if seconds > 0 else None,
        "Prompts": summary.get("prompts"),
        "State": status["state"],
        **{key.replace("_", " ").capitalize(): _number(summary[key]) for key in summary if _extra(key, summary[key])},
    }
    cells = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items() if v)
    reason = f'<p class="note">{escape(str(status["reason"]))}</p>' if status.get("reason") else ""
    title = f'<p class="eyebrow">Alignment report</p><h1>{escape(view.name)}</h1>'
    return f"<header>{title}<dl>{cells}</dl>{reason}</header>"


def _results(view: RunView) -> str:
    """The table of summary.json, under tiles with the first few rewards."""
    summary = view.summary or {}
    before, after = summary.get("before") or {}, summary.get("after") or {}
    if not before and not after:
        return _section("Before and after", "There is no summary.json with figures from before and after training.")
    rewards = [name for name in before | after if name != "guards"]
    old_guards, new_guards = before.get("guards") or {}, after.get("guards") or {}
    guards, sigmas = list(old_guards | new_guards), summary.get("guard_sigmas") or {}
    rows = [_row(name, before.get(name), after.get(name)) for name in rewards]
    if guards:
        rows.append('<tr class="group"><th colspan="5">Guards, which no reward looks at</th></tr>')
    rows += [_row(name, old_guards.get(name), new_guards.get(name), sigmas.get(name)) for name in guards]
    text = f"Over {summary['prompts']} prompts. " if "prompts" in summary else ""
    if guards and sigmas:
        flagged = ", ".join(name for name in guards if _far(sigmas.get(name)))
        text += "Shift is in standard deviations (σ) of the base model. "
        text += f"Beyond {SIGMAS:g} σ: {flagged}." if flagged else f"No guard is beyond {SIGMAS:g} σ."
    elif guards:
        text += "How far the guards moved in standard deviations of the base model was not recorded."
    tiles = "".join(
        f'<div class="card tile"><span class="soft">{escape(name)}</span><b>{_number(after.get(name))}</b><span '
        f'class="soft">{_change(before.get(name), after.get(name))} from {_number(before.get(name))}</span></div>'
        for name in rewards[:4]
    )
    head = "".join(f"<th>{name}</th>" for name in ("", "before", "after", "change", "shift"))
    table = f'<div class="card"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    return f'<div class="grid tiles">{tiles}</div>' + _section("Before and after", text, table)


def _row(name: str, old: Any, new: Any, sigma: Any = None) -> str:
    shift = f"{'⚠ ' if _far(sigma) else ''}{_number(sigma, '+')} σ" if _is_number(sigma) else ""
    cells = "".join(f"<td>{cell}</td>" for cell in (_number(old), _number(new), _change(old, new), shift))
    return f"<tr{' class="bad"' if _far(sigma) else ''}><th>{escape(name)}</th>{cells}</tr>"


def _pictures(view: RunView) -> str:
    """Samples of step 0 beside those of the last step, matched by prompt and sample."""
    steps = view.sample_steps()
    if 0 not in steps or steps[-1] == 0:
        return _section("Samples", "There are no samples of both step 0 and a later step to compare.")
    before, after = (
        {(str(r.get("prompt_id")), str(r.get("sample_id"))): r for r in view.samples(s)} for s in (0, steps[-1])
    )
    pairs = [(before[key], after[key]) for key in before if key in after]
    changes = [{k: new[k] - old[k] for k in old if k in new} for old, new in ((_rewards(a), _rewards(b)) for a, b in pairs)]
    names = list(dict.fromkeys(name for change in changes for name in change))
    largest = {name: max(abs(change.get(name, 0)) for change in changes) or 1.0 for name in names}
    size = [max((abs(value) / largest[name] for name, value in change.items()), default=-1) for change in changes]
    order = sorted(range(len(pairs)), key=lambda i: -size[i])[:PAIRS]
    text = f"Step 0 beside step {steps[-1]}, matched by prompt and sample number: {len(order)} of {len(pairs)} pairs, "
    if names:
        text += "those whose reward changed most come first, so they are not typical. Over all pairs, "
        text += "; ".join(_tally(name, [change[name] for change in changes if name in change]) for name in names) + "."
    else:
        text += "in the order of the run, as no rewards were recorded with them."
    figures = "".join(_figure(*pairs[i], steps[-1]) for i in order)
    return _section("Samples", text, f'<div class="grid three">{figures}</div>')


def _rewards(record: Mapping[str, Any]) -> dict[str, float]:
    rewards = record.get("rewards") or {"reward": record.get("reward")}
    return {name: value for name, value in rewards.items() if _is_number(value)}


def _tally(name: str, changes: Sequence[float]) -> str:
    up, down = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    return f"{name} rose in {up}, fell in {down} and stayed in {len(changes) - up - down}"


def _figure(old: Mapping[str, Any], new: Mapping[str, Any], last: int) -> str:
    a, b = _rewards(old), _rewards(new)
    told = "<br>".join(f"{escape(k)} {_number(a.get(k))} → {_number(b.get(k))} ({_change(a.get(k), b.get(k))})" for k in a | b)
    sides = "".join(f"<div><span>step {s}</span>{_sample(r)}</div>" for s, r in ((0, old), (last, new)))
    prompt = escape(str(new.get("prompt", "no prompt recorded")))
    return f'<figure class="card"><div class="pair">{sides}</div><figcaption><b>{prompt}</b>{told}</figcaption></figure>'


def _sample(record: Mapping[str, Any]) -> str:
    if "text" in record:
        return f"<pre>{escape(str(record['text']))}</pre>"
    file = record["file"]
    if file.suffix not in MIME or not file.is_file():
        return '<span class="soft">This picture is missing.</span>'
    data = b64encode(file.read_bytes()).decode()
    pixel = ' class="pixel"' if (record.get("width") or SMALL + 1) <= SMALL else ""
    alt = escape(f"{record.get('prompt', '')}, step {record.get('step')}")
    return f'<img{pixel} alt="{alt}" src="data:{MIME[file.suffix]};base64,{data}">'


def _curves(view: RunView) -> str:
    """Rewards, loss and time; ratio statistics per denoising step; guards."""
    lines: dict[str, Points] = {}
    for record in view.metrics().records:
        for name in record.keys() - {"t", "step"}:
            lines.setdefault(name, []).append((record["step"], record[name]))
    lines = {name: points for name in sorted(lines) if (points := finite(lines[name]))}
    gold = [name for name in lines if name.startswith(GOLD)]
    wanted = [PROXY, *gold, "loss/total", "time/step"]
    text = "".join(f"{name} was not recorded. " for name in wanted if name not in lines)
    text += "" if gold else "No held-out reward was recorded, so nothing here tells a real gain from a gamed reward."
    both, note = [name for name in [PROXY, *gold][:LIMIT] if name in lines], ""
    if gold and PROXY in lines:
        fell = [name for name in gold if _rise(lines[name]) < 0 < _rise(lines[PROXY])]
        note = f'<p class="note">⚠ From first to last record {PROXY} rose while {escape(", ".join(fell))} fell.</p>'
        chart = line_chart({n: _normalized(lines[n]) for n in both}, title="Proxy against gold", x_label=X,
                           y_label="share of own range", width=1020, height=340)
        told = "Each curve fills its own range, 0 at its lowest and 1 at its highest: compare directions, not heights."
        note = (note if fell else "") + f'<figure class="card wide">{chart}<figcaption>{told}</figcaption></figure>'
    page = _section("Training", text, note + _charts(_single(lines, wanted)))
    page += _section("Ratio by denoising step", *_ratios(lines))
    guards = _charts(_single(lines, [name for name in lines if name.startswith("sample/")]))
    return page + _section("Guards over time", "" if guards else "No guards were recorded during training.", guards)


def _ratios(lines: Mapping[str, Points]) -> tuple[str, str]:
    found: dict[str, dict[int, Points]] = {}
    for name in lines:
        if match := re.fullmatch(r"ratio/(\w+)@(\d+)", name):
            found.setdefault(match[1], {})[int(match[2])] = lines[name]
    charts = []
    for statistic in sorted(found, key=lambda s: (list(RATIO).index(s) if s in RATIO else len(RATIO), s)):
        steps, told = sorted(found[statistic]), RATIO.get(statistic, "Logged for each denoising step.")
        if len(steps) > LIMIT:
            told += f" Shown are {LIMIT} of {len(steps)} steps."
            steps = [steps[round(k * (len(steps) - 1) / (LIMIT - 1))] for k in range(LIMIT)]
        shown = {f"t = {t}": found[statistic][t] for t in steps}
        charts.append((line_chart(shown, title=f"ratio/{statistic}", x_label=X, y_label=statistic), told))
    text = "One line for each trained denoising step t; t = 0 is the noisiest." if charts else NO_RATIO
    return text, _charts(charts, "two")


def _single(lines: Mapping[str, Points], names: Iterable[str]) -> list[tuple[str, str]]:
    """Small charts of one metric each, with its first and last value."""
    return [
        (
            line_chart({n: lines[n]}, title=n, x_label=X, y_label=n.rpartition("/")[2], width=340, height=210),
            f"{_number(lines[n][0][1])} → {_number(lines[n][-1][1])}",
        )
        for n in names
        if n in lines
    ]


def _charts(charts: Sequence[tuple[str, str]], columns: str = "three") -> str:
    cards = "".join(f'<figure class="card">{c}<figcaption>{escape(told)}</figcaption></figure>' for c, told in charts)
    return f'<div class="grid {columns}">{cards}</div>' if cards else ""


def _events(view: RunView) -> str:
    """Alarms and warnings; what happens in every run is only counted."""
    events = view.events()
    odd = [event for event in events if event.get("kind") not in ROUTINE]
    if not odd:
        return _section("Alarms", f"No alarms among {len(events)} events.")
    rows = []
    for event in odd[:EVENTS]:
        told = "; ".join(f"{k}: {_plain(v)}" for k, v in event.items() if k not in ("t", "kind", "step"))
        alarm = ' class="bad"' if event.get("kind") == "alarm" else ""
        cells = f"<td>{escape(str(event.get('step', '')))}</td><td class='words'>{escape(told)}</td>"
        rows.append(f"<tr{alarm}><th>{escape(str(event.get('kind')))}</th>{cells}</tr>")
    table = f'<div class="card"><table><thead><tr><th>kind</th><th>step</th><th></th></tr></thead><tbody>{"".join(rows)}'
    return _section("Alarms", f"The first {len(rows)} of {len(odd)}; ...", table + "</tbody></table></div>")


def _setup(view: RunView) -> str:
    recipe, place = view.file("recipe.yaml"), view.file("env.json")
    page = _section("Recipe", "recipe.yaml is missing.")
    if recipe.is_file():
        text = escape(recipe.read_text(encoding="utf-8"))
        page = _section("Recipe", "", f'<details class="card"><summary>recipe.yaml</summary><pre>{text}</pre></details>')
    if not place.is_file():
        return page + _section("Versions", "env.json is missing.")
    env = view.env
    facts = {k: v for k, v in env.items() if k not in ("versions", "host") and v is not None} | env.get("versions", {})
    if isinstance(facts.get("command"), list):
        facts["command"] = shlex.join(facts["command"])
    cells = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(_plain(v))}</dd></div>" for k, v in facts.items())
    return page + _section("Versions", "", f"<dl>{cells}</dl>")
