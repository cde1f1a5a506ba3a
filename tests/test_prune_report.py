"""The report of a prune run: its stages, the map of what was removed, dense beside pruned, and nothing about training."""

import re
import subprocess
import sys

import pytest
import torch

from studio.removed import removal_map
from studio.report import write_report
from studio.run import Run
from studio.stages import NONE, columns, rows, table
from tests.test_report import Tags

STAGES = [
    {"name": "dense", "params": 1000, "flops": 4e6, "seconds": 0.02, "latent_error": 0.0, "rewards": {"scene": 0.5, "clip": 0.25}},
    {"name": "cut", "params": 800, "flops": None, "seconds": None, "latent_error": 0.3, "rewards": {"scene": 0.25, "clip": 0.2}},
    {"name": "compensated", "params": 800, "flops": 3e6, "seconds": 0.018, "latent_error": 0.1, "rewards": {"scene": 0.4}},
]
GROUPS = [
    {"name": "transformer_blocks.0.attn", "kind": "heads", "units": 4, "kept": 4},
    {"name": "transformer_blocks.0.ff", "kind": "neurons", "units": 8, "kept": 2},
    {"name": "transformer_blocks.1.attn", "kind": "heads", "units": 4, "kept": 2},
    {"name": "transformer_blocks.1.attn2", "kind": "heads", "units": 4, "kept": 0},
    {"name": "transformer_blocks.1.ff", "kind": "neurons", "units": 8, "kept": 6},
    {"name": "single_transformer_blocks.0.mlp", "kind": "neurons", "units": 8, "kept": 8},
]
SUMMARY = {"prompts": 64, "seconds": 90.0, "params_kept": 0.8, "latent_error": 0.1, "stages": STAGES, "groups": GROUPS}
SUMMARY |= {"before": {"scene": 0.5, "guards": {"luminance": 0.5}}, "after": {"scene": 0.4, "guards": {"luminance": 0.6}}}


def create(root, steps=0, groups=GROUPS):
    recipe = {"criterion": {"name": "taylor"}, "model": {"id": "shapes"}, "target": {"params": 0.8, "flops": None}}
    run = Run.create(root, "small", recipe, total_steps=steps, command=["studio", "prune"])
    facts = [{"prompt_id": "p0", "sample_id": 0, "prompt": "a red circle", "rewards": {"scene": 0.5}}]
    run.save_samples(0, torch.zeros(1, 3, 8, 8), facts)
    run.save_samples(max(1, steps), torch.ones(1, 3, 8, 8), facts)
    run.summary(SUMMARY | {"groups": groups})
    run.status(state="finished", step=steps)
    return run


@pytest.fixture
def page(tmp_path):
    return write_report(create(tmp_path).folder).read_text(encoding="utf-8")


def test_the_sections_are_those_of_pruning(page):
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles == ["Stages", "What was removed", "Dense and pruned", "Samples", "Alarms", "Recipe", "Versions"]
    assert '<p class="eyebrow">Pruning report</p>' in page
    assert "<dd>taylor</dd>" in page and "<dd>params 0.8</dd>" in page and "Steps" not in page
    assert "<dt>Parameters kept</dt><dd>0.8</dd>" in page
    assert "<span>dense</span>" in page and "<span>pruned</span>" in page and "step 0" not in page.lower()
    assert "<th>dense</th><th>pruned</th><th>change</th><th></th>" in page and "σ" not in page
    assert Tags(page).open == [] and "script" not in Tags(page).seen


def test_stages_are_shares_of_the_dense_network(page):
    assert columns(SUMMARY) == ["parameters", "FLOPs", "time", "latent error", "scene", "clip"]
    assert rows(SUMMARY) == [
        ["dense", "1.000", "1.000", "1.000", "0.0000", "0.500", "0.250"],
        ["cut", "0.800", NONE, NONE, "0.3000", "0.250", "0.200"],
        ["compensated", "0.800", "0.750", "0.900", "0.1000", "0.400", NONE],
    ]
    assert "<tr><th>compensated</th><td>0.800</td><td>0.750</td><td>0.900</td><td>0.1000</td><td>0.400</td><td>–</td></tr>" in page
    assert "1000 parameters, 4,000,000 FLOPs, 20 ms for one forward" in page
    assert [column.header for column in table(SUMMARY).columns] == ["", *columns(SUMMARY)]


def cells(text):
    """Of every table its caption, header and rows as (header, [(text, share)])."""
    found = []
    for one in re.findall(r"<table>(.*?)</table>", text):
        head = re.findall(r'<th scope="col">(.*?)</th>', one)
        body = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', one)
        inside = [
            (
                name,
                [
                    (re.sub("<.*?>", "", cell), share)
                    for share, cell in re.findall(r'<td[^>]*?(?:--share:([\d.]+)"|)>(.*?)</td>', row)
                ],
            )
            for name, row in body
        ]
        found.append((re.search("<caption>(.*?)</caption>", one)[1], [h.replace("<wbr>", "") for h in head], inside))
    return found


def test_the_map_has_a_row_per_block_and_a_column_per_module():
    text = removal_map(GROUPS)
    double, single = cells(text)
    assert double[:2] == ("Units of transformer_blocks that stay, by block and module", ["block", "attn", "ff", "attn2"])
    assert double[2] == [
        ("0", [("4/4", "1.000"), ("2/8", "0.250"), ("", "")]),
        ("1", [("2/4", "0.500"), ("6/8", "0.750"), ("0/4", "0.000")]),
        ("all", [("75%", "0.750"), ("50%", "0.500"), ("0%", "0.000")]),
    ]
    assert single[1:] == (["block", "mlp"], [("0", [("8/8", "1.000")]), ("all", [("100%", "1.000")])])
    assert text.count('class="gone"') == 1 and "22 of 36 units stay: 6 of 12 heads (50%), 16 of 24 neurons (67%)" in text
    assert "100% stay" in text and "0% stay" in text and "empty: no such module" in text


def test_stacks_with_the_same_columns_share_a_table_and_blocks_are_one_column():
    names = ["down_blocks.1.attentions.0.transformer_blocks", "mid_block.attentions.0.transformer_blocks"]
    groups = [{"name": f"{name}.{i}.attn1", "kind": "heads", "units": 2, "kept": 1} for name in names for i in range(2)]
    text = removal_map(groups)
    ((caption, head, inside),) = cells(text)
    assert caption == "Units that stay, by block and module" and head == ["block", "attn1"]
    assert [name for name, _ in inside] == ["0", "1", "0", "1", "all"]
    assert re.findall(r'scope="rowgroup" colspan="2">(.*?)<', text) == names
    whole = [{"name": f"transformer_blocks.{i}", "kind": "blocks", "units": 1, "kept": i % 2} for i in range(2)]
    ((_, head, inside),) = cells(removal_map(whole))
    assert head == ["block", "blocks"] and [row[0][0] for _, row in inside] == ["0/1", "1/1", "50%"]


def test_curves_of_a_learned_mask(tmp_path):
    run = create(tmp_path, steps=2)
    for step in (1, 2):
        run.log(step, {"prune/error": 0.4 / step, "prune/multiplier": 0.1 * step, "time/step": 1.0, "reward/eval.scene": 0.4})
    page = write_report(run.folder).read_text(encoding="utf-8")
    assert "<h2>Learning the mask</h2>" in page and "<h2>Training</h2>" not in page and "Ratio" not in page
    assert re.findall(r'aria-label="(.*?)"', page) == ["prune/error", "prune/multiplier", "reward/eval.scene"]
    assert "0.4 → 0.2. Latent error of the gated network" in page and ">update</text>" in page
    assert "<dd>2 of 2</dd>" in page


def test_a_run_that_has_removed_nothing_yet_says_so(tmp_path):
    run = create(tmp_path, steps=9)
    (run.folder / "summary.json").unlink()
    run.status(state="stopped", step=3)
    page = write_report(run.folder).read_text(encoding="utf-8")
    assert "Pruning report" in page and "nothing was removed yet" in page and "What was removed" not in page


def test_no_torch_for_a_report_of_a_prune_run(tmp_path):
    code = "import sys; from pathlib import Path; from studio.report import write_report; write_report(Path(sys.argv[1]))"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(create(tmp_path).folder)]).returncode == 0
