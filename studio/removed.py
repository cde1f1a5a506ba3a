"""What a prune run removed, as parts of a page: its stages, and a map of every block with the units that each module keeps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from studio import page, stages
from studio.chart import is_number, number

# blue where units stay, paper where they went: the share is the opacity, up to what text on top of it stands
STYLE = """
:root{--kept:11 98 168;--most:.6}@media(prefers-color-scheme:dark){:root{--kept:109 184 242;--most:.5}}
.map{width:fit-content;max-width:100%}.map table{width:auto;min-width:min(100%,260px);border-collapse:separate;border-spacing:2px}
.map th,.map td{border:0;padding:5px 9px}.map tr>:first-child{padding-left:0}.map tr>:last-child{padding-right:9px}
.map thead th{white-space:normal;vertical-align:bottom;overflow-wrap:normal}.map td{border-radius:4px;text-align:right}
.map caption,.legend{text-align:left;color:var(--soft);font-size:.84rem;padding:0 0 12px}
.map .group th{padding-top:14px;white-space:normal}
.map td,.legend i{background:rgb(var(--kept)/calc(var(--most)*var(--share)))}.map td.none{background:none}
.map td.gone{box-shadow:inset 0 0 0 1px var(--bad);color:var(--bad);font-weight:700}.map td span{color:inherit;
opacity:.75}.map tfoot>tr>*{border-top:1px solid var(--edge);padding-top:8px}.legend{display:flex;flex-wrap:wrap;
gap:6px 16px;align-items:center;padding:0}.legend i{display:inline-block;width:26px;height:16px;border-radius:4px;
margin-right:6px;vertical-align:-3px;border:1px solid var(--edge)}
@media(max-width:600px){.map th,.map td{padding:4px 4px;font-size:.76rem}.map tr>:last-child{padding-right:4px}}
"""
WORDS = {"modulation": "modulation outputs"}  # kinds of units that read badly as they are called


@dataclass(frozen=True)
class Stack:
    """Blocks that follow each other under one name, and the columns that they have."""

    name: str  # "transformer_blocks"
    cells: dict[str, dict[str, Mapping[str, Any]]]  # number of a block -> module -> group

    @property
    def modules(self) -> tuple[str, ...]:
        """In the order in which they first come."""
        return tuple(dict.fromkeys(module for block in self.cells.values() for module in block))


def stage_table(summary: Mapping[str, Any]) -> str:
    """Costs, latent error and rewards of every stage, dense first."""
    first = summary["stages"][0]
    text = (
        f"Means over {summary['prompts']} held-out prompts, each drawn from the same noise at every stage. Parameters, FLOPs and "
    )
    text += f"time are shares of the dense network's: {number(first['params'])} parameters"
    text += f", {number(first['flops'])} FLOPs" if is_number(first.get("flops")) else ""
    text += f", {number(1000 * first['seconds'])} ms for one forward" if is_number(first.get("seconds")) else ""
    text += ". Latent error is the squared distance to the dense network's final latents, relative to their size."
    cells = [page.row(*cells) for cells in stages.rows(summary)]
    return page.section("Stages", text, page.table(("", *map(escape, stages.columns(summary))), cells))


def removal_map(groups: Sequence[Mapping[str, Any]]) -> str:
    """Rows are blocks in their order, columns modules; each cell says how many units stay, and is shaded by their share."""
    units, kept = (sum(group[key] for group in groups) for key in ("units", "kept"))
    kinds = ", ".join(_of_kind(groups, kind) for kind in dict.fromkeys(group["kind"] for group in groups))
    text = f"{kept:,} of {units:,} units stay: {kinds}. Each cell is a module: units that stay / units that there were."
    tables = "".join(_table(part) for part in _alike(_stacks(groups)))
    return page.section("What was removed", text, f"{_legend()}{tables}")


def _of_kind(groups: Sequence[Mapping[str, Any]], kind: str) -> str:
    units, kept = (sum(group[key] for group in groups if group["kind"] == kind) for key in ("units", "kept"))
    return f"{kept:,} of {units:,} {WORDS.get(kind, kind)} ({kept / units:.0%})"


def _stacks(groups: Sequence[Mapping[str, Any]]) -> list[Stack]:
    """Groups by the last number in their names: "transformer_blocks.3.ff" is module ff of block 3."""
    found: dict[str, Stack] = {}
    for group in groups:
        placed = re.fullmatch(r"(.*)\.(\d+)(?:\.(\D.*))?", group["name"])
        name, block, module = placed.groups() if placed else ("", group["name"], None)
        stack = found.setdefault(name, Stack(name, {}))
        stack.cells.setdefault(block, {})[module or group["kind"]] = group
    return list(found.values())


def _alike(found: Sequence[Stack]) -> list[list[Stack]]:
    """Stacks with the same columns share a table."""
    parts: dict[tuple[str, ...], list[Stack]] = {}
    for stack in found:
        parts.setdefault(stack.modules, []).append(stack)
    return list(parts.values())


def _table(part: Sequence[Stack]) -> str:
    modules = part[0].modules
    head = "".join(f'<th scope="col">{_breaking(module)}</th>' for module in modules)
    body = ""
    for stack in part:
        if len(part) > 1:  # else the caption says it
            body += f'<tr class="group"><th scope="rowgroup" colspan="{len(modules) + 1}">{escape(stack.name)}</th></tr>'
        for block, cells in stack.cells.items():
            inside = "".join(_cell(cells.get(module)) for module in modules)
            body += f'<tr><th scope="row">{escape(block)}</th>{inside}</tr>'
    columns = [[cells[module] for stack in part for cells in stack.cells.values() if module in cells] for module in modules]
    sums = [{key: sum(group[key] for group in column) for key in ("units", "kept")} for column in columns]
    foot = "".join(f"<td {_shade(each)}>{each['kept'] / each['units']:.0%}</td>" for each in sums)
    caption = escape(f"Units of {part[0].name or 'the network'}" if len(part) == 1 else "Units") + " that stay, by block and module"
    return (
        f'<div class="card map"><table><caption>{caption}</caption><thead><tr><th scope="col">block</th>{head}</tr></thead>'
        f'<tbody>{body}</tbody><tfoot><tr><th scope="row">all</th>{foot}</tr></tfoot></table></div>'
    )


def _breaking(name: str) -> str:
    """A name that may go on in the next line after its dots and underscores."""
    return re.sub(r"([._])", r"\1<wbr>", escape(name))


def _cell(group: Mapping[str, Any] | None) -> str:
    if group is None:
        return '<td class="none"></td>'
    gone = ' class="gone"' if not group["kept"] else ""
    return f"<td{gone} {_shade(group)}>{group['kept']}<span>/{group['units']}</span></td>"


def _shade(group: Mapping[str, Any]) -> str:
    return f'style="--share:{group["kept"] / group["units"]:.3f}"'


def _legend() -> str:
    steps = "".join(f'<span><i style="--share:{share}"></i>{share:.0%} stay</span>' for share in (1, 0.75, 0.5, 0.25, 0))
    return f'<p class="legend">{steps}<span>red: nothing stays</span><span>empty: no such module</span></p>'
