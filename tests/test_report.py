"""The report shows the figures of a run, escapes its text and loads nothing; charts are drawn to scale."""

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch

from studio.chart import change, finite, line_chart, nice_ticks, normalized, number, tick_labels
from studio.report import RATIO, write_report
from studio.run import Run

EVIL = "<script>alert('x')</script> & a \"red\" cube"
SUMMARY = {
    "before": {"scene": 0.4375, "clip": 0.281, "guards": {"luminance": 0.51, "dark_share": 0.2}},
    "after": {"scene": 0.75, "clip": None, "guards": {"luminance": 0.5, "dark_share": 0.4}},
    "guard_sigmas": {"luminance": -0.12, "dark_share": 3.4},
}
SUMMARY |= {"prompts": 256, "seconds": 431.7, "params_kept": 0.625}


def create(root):
    recipe = {"algorithm": {"name": "grpo_guard"}, "policy": {"model": "bundled/shapes"}, "note": EVIL}
    return Run.create(root, "guard-run", recipe, total_steps=3, command=["studio", "demo"])


def records(count, rewards):
    facts = [{"prompt_id": f"p{i:03d}", "sample_id": 0, "prompt": f"prompt number {i:03d}"} for i in range(count)]
    facts[1]["prompt"] = EVIL
    return [{**fact, "rewards": {"scene": rewards(i)}} for i, fact in enumerate(facts)]


@pytest.fixture
def run(tmp_path):
    """Thirty pairs whose reward changes by their index in thousandths, the first downward; three logged steps."""
    run = create(tmp_path)
    run.save_samples(0, torch.zeros(30, 3, 8, 8), records(30, lambda i: 0.5))
    for step in (1, 2, 3):
        values = {f"ratio/raw_shift@{t}": -1e-5 * step * (t + 1) for t in range(10)} | {"loss/total": -0.001 * step}
        values |= {"reward/mean": 0.4 + 0.1 * step, "reward/held_out.clip": 0.3 - 0.01 * step}
        run.log(step, values | {"ratio/odd@2": 1.0, "sample/dark_share": 0.1 * step, "sample/none": math.nan})
    run.save_samples(3, torch.ones(31, 3, 8, 8), records(31, lambda i: 0.5 + 0.001 * i * (-1 if i < 5 else 1)))
    run.event("alarm", step=2, guard="dark_share", told=EVIL)
    run.summary(SUMMARY)
    run.status(state="finished", step=3)
    return run


@pytest.fixture
def page(run):
    return write_report(run.folder).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Checks that tags close in order; collects them, and what the page would load."""

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.loads = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.open += [tag] if tag not in ("meta", "img", "br") else []
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "xlink:href", "data", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_is_in_export_and_says_what_was_run(run, page):
    assert (run.folder / "export" / "report.html").read_text(encoding="utf-8") == page
    assert write_report(run.folder).read_text(encoding="utf-8") == page  # the same bytes twice
    assert "<h1>guard-run</h1>" in page
    for word in ("grpo_guard", "bundled/shapes", "3 of 3", "431.7 s", "finished", "0.625"):
        assert f"<dd>{word}</dd>" in page


def test_table_holds_before_after_change_and_flags_far_guards(page):
    rows = dict(re.findall(r"<tr[^>]*><th>(\w+)</th>(.*?)</tr>", page))
    cells = {name: re.findall("<td>(.*?)</td>", row) for name, row in rows.items()}
    assert cells["scene"] == ["0.4375", "0.75", "+0.3125", ""]
    assert cells["clip"] == ["0.281", "–", "–", ""]
    assert cells["luminance"] == ["0.51", "0.5", "−0.01", "−0.12 σ"]
    assert cells["dark_share"] == ["0.2", "0.4", "+0.2", "⚠ +3.4 σ"]
    assert '<tr class="bad"><th>dark_share' in page and "<tr><th>luminance" in page
    assert "Over 256 prompts" in page and "beyond 3 σ: dark_share." in page


def test_pairs_are_matched_most_changed_first_and_at_most_24(page):
    assert page.count('<div class="pair">') == 24
    assert "24 of 30 pairs, most changed reward first, so not typical" in page
    assert "scene rose in 25, fell in 4 and stayed in 1" in page
    shown = re.findall(r"<figcaption><b>prompt number (\d+)</b>", page)
    assert shown == [f"{i:03d}" for i in range(29, 5, -1)]
    assert "scene 0.5 → 0.529" in page
    assert page.count('class="pixel"') == 48 and page.count('src="data:image/png;base64,') == 48


def test_text_of_the_run_is_escaped(run):
    run.save_samples(4, torch.ones(2, 3, 8, 8), records(2, lambda i: i))
    page = write_report(run.folder).read_text(encoding="utf-8")
    assert page.count("&lt;script&gt;") >= 5  # two alternative texts, the caption, the alarm, the recipe
    assert "script" not in Tags(page).seen


def test_page_is_well_formed_and_loads_nothing(page):
    tags = Tags(page)
    assert tags.open == []
    assert tags.loads and all(load.startswith("data:image/") for load in tags.loads)
    assert not {"script", "link", "iframe", "object"} & set(tags.seen)
    assert "url(" not in page and "@import" not in page and "http://" not in page and "https://" not in page


def test_curves_ratios_guards_and_alarms(page):
    titles = "Proxy against gold, reward/mean, reward/held_out.clip, loss/total, ratio/raw_shift, ratio/odd, "
    assert ", ".join(re.findall(r'aria-label="(.*?)"', page)) == titles + "sample/dark_share"
    assert "time/step was not recorded" in page
    assert "reward/mean rose while reward/held_out.clip fell" in page
    assert "0.5 → 0.7" in page and "0.29 → 0.27" in page
    assert RATIO["raw_shift"] in page and "Shown are 8 of 10 steps." in page
    assert "t = 0" in page and "t = 9" in page
    assert "4 of 4 alarms and warnings" in page and '<tr class="bad"><th>alarm</th><td>2</td>' in page
    assert "metrics: sample/none" in page


def test_recipe_and_versions(page):
    assert "<details><summary>recipe.yaml</summary><pre>algorithm:\n  name: grpo_guard" in page
    assert "<dt>torch</dt>" in page and "<dt>command</dt><dd>studio demo</dd>" in page
    assert "<dt>host</dt>" not in page  # reports are passed on


def test_whatever_is_missing_is_said(tmp_path):
    run = create(tmp_path)
    (run.folder / "env.json").unlink()
    (run.folder / "recipe.yaml").unlink()
    page = write_report(run.folder).read_text(encoding="utf-8")
    assert Tags(page).open == []
    missing = ["no summary.json", "no samples of both", "reward/mean was not recorded", "No held-out reward"]
    missing += ["No ratios were", "No guards were", "no alarms", "recipe.yaml is missing", "env.json is missing"]
    assert [told for told in missing if told not in page] == []


def test_texts_missing_pictures_and_missing_rewards(tmp_path):
    run = create(tmp_path)
    facts = [{"prompt_id": "a", "sample_id": 0, "rewards": None}]
    run.save_samples(0, ["once <b>"], facts)
    run.save_samples(9, torch.zeros(1, 3, 200, 300), facts)
    page = write_report(run.folder).read_text(encoding="utf-8")
    assert "<pre>once &lt;b&gt;</pre>" in page and "prompt not recorded" in page
    assert "in the order of the run, without rewards" in page
    assert 'src="data:image/webp;base64,' in page and 'class="pixel"' not in page
    next(run.folder.glob("samples/000009/*.webp")).unlink()
    assert "This picture is missing." in write_report(run.folder).read_text(encoding="utf-8")


def test_no_torch_for_a_report():
    code = "import sys, studio.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def draw(series, title="a", **options):
    return ElementTree.fromstring(line_chart(series, title=title, x_label="step", y_label="y", **options))


def polylines(svg):
    return [[tuple(map(float, p.split(","))) for p in e.get("points").split()] for e in svg.iter("polyline")]


def labels(svg, anchor):
    return [e.text for e in svg.iter("text") if e.get("text-anchor") == anchor]


def test_points_stand_where_they_belong():
    # 520 x 260 less margins: x from 64 to 504, y from 218 up to 32 (no legend: the title is the only name)
    svg = draw({"a": [(0, 0), (10, 1), (5, 0.5)]})
    assert polylines(svg) == [[(64, 218), (284, 125), (504, 32)]]
    assert labels(svg, "end") == ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [label for label in labels(svg, "middle") if label.isdecimal()] == ["0", "2", "4", "6", "8", "10"]
    assert nice_ticks(0, 2, 5, least=1.0) == [0, 1, 2]  # steps are whole
    # ticks of y reach from 0 to 8; a row of legend takes 17 px from the top, so 169 px are left for them
    svg = draw({"b": [(0, 2), (1, 8)], "c": [(0, 0)]}, "t")
    assert polylines(svg) == [[(64, 175.8), (504, 49)], [(64, 218)]]
    assert labels(svg, "start") == ["b", "c"]


def test_chart_has_words_for_those_who_do_not_see_it():
    svg = draw({"a<b": [(0, 1), (3, 2.5)], "empty": [(0, None)]}, "t & u")
    assert svg.get("role") == "img" and svg.get("aria-label") == "t & u" == svg.find("title").text
    assert svg.find("desc").text == "Line chart of y over step. a<b: 1 at 0, 2.5 at 3, 2 points. empty: no data."
    assert [e.find("title").text for e in svg.iter("circle")] == ["a<b: 1 at 0", "a<b: 2.5 at 3"]


def test_strange_points_are_dropped_and_nothing_at_all_is_said():
    points = [(2, 1.0), (0, None), (1, math.nan), (1, math.inf), (None, 1), (0, 3.0)]
    assert finite(points) == [(0, 3.0), (2, 1.0)]
    assert len(polylines(draw({"a": points}))[0]) == 2
    assert labels(draw({"a": [(0, None)]}), "middle") == labels(draw({}), "middle") == ["no data"]


@pytest.mark.parametrize("value", [0.0, 5.0, -1e-6, 1e9, 1e-30])
def test_one_point_and_constants_stand_inside(value):
    ((x, y),) = polylines(draw({"a": [(7, value)]}))[0]
    assert x == 284 and 32 < y < 218
    line = polylines(draw({"a": [(0, value), (4, value)]}))[0]
    assert line[0][1] == line[1][1] and 32 < line[0][1] < 218


def test_long_series_keep_their_peaks_and_ends():
    points = [(k, 100.0 if k == 5003 else -50.0 if k == 7001 else k % 7) for k in range(20000)]
    line = polylines(draw({"a": points}))[0]
    assert len(line) <= 4 * 441 and (line[0][0], line[-1][0]) == (64, 504)
    assert (min(y for _, y in line), max(y for _, y in line)) == (32, 218)


def test_at_most_eight_lines_each_of_its_own_look():
    lines = {str(i): [(0, i), (1, i)] for i in range(8)}
    assert len({e.get("style") for e in draw(lines).iter("polyline")}) == 8
    with pytest.raises(ValueError, match="got 9 series, expected at most 8"):
        draw({**lines, "9": []})


TICKS = [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1], "0 0.2 0.4 0.6 0.8 1.0"),
    (-0.3, 0.42, [-0.4, -0.2, 0, 0.2, 0.4, 0.6], "-0.4 -0.2 0 0.2 0.4 0.6"),
    (3, 97, [0, 20, 40, 60, 80, 100], "0 20 40 60 80 100"),
    (-3e-6, 0, [-3e-6, -2e-6, -1e-6, 0], "-3e-6 -2e-6 -1e-6 0"),
    (0, 2.2e-6, [0, 5e-7, 1e-6, 1.5e-6, 2e-6, 2.5e-6], "0 5.0e-7 1.0e-6 1.5e-6 2.0e-6 2.5e-6"),
    (0, 4e6, [0, 1e6, 2e6, 3e6, 4e6], "0 1e6 2e6 3e6 4e6"),
]


@pytest.mark.parametrize(("low", "high", "ticks", "words"), TICKS)
def test_ticks_are_round_numbers_around_the_data(low, high, ticks, words):
    assert nice_ticks(low, high) == pytest.approx(ticks)
    assert tick_labels(nice_ticks(low, high)) == words.split()


def test_numbers_for_people():
    told = [number(x) for x in (0.123456, 1234567, -2e-5, 0, None, math.nan, True)]
    assert told == ["0.1235", "1,234,567", "−2e−5", "0", "–", "–", "–"]
    assert (change(0.4, 0.5), change(1, 0), change(None, 1)) == ("+0.1", "−1", "–")
    assert normalized([(0, 2.0), (1, 4.0), (2, 3.0)]) == [(0, 0.0), (1, 1.0), (2, 0.5)]
    assert normalized([(0, 2.0), (1, 2.0)]) == [(0, 0.5), (1, 0.5)]
