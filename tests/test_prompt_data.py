"""Prompt lists: split, repetitions and weights; GenEval metadata, editing folders, saved datasets."""

import json
import subprocess
import sys
from collections import Counter

import pytest
from PIL import Image

from studio.errors import ConfigError
from studio.prompts.dataset import DatasetPrompts
from studio.prompts.edit import EditPrompts
from studio.prompts.geneval import GenEvalPrompts
from studio.prompts.order import Shuffled
from studio.prompts.read import key_of
from studio.prompts.select import Select, held_out_by_hash, repetition, split, spread, weights_of
from studio.prompts.source import FilePrompts
from studio.recipe import load_recipe
from studio.types import Prompts


def some(*texts: str, **info) -> Prompts:
    return Prompts(list(texts), [key_of(text) for text in texts], [{k: v[i] for k, v in info.items()} for i in range(len(texts))])


def lines(path, *records) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return str(path)


def many(count: int) -> Prompts:
    return some(*(f"prompt {i}" for i in range(count)))


def test_the_split_depends_on_key_and_seed_alone():
    train, test = split(many(1000), 0.2, seed=3)
    assert 160 <= len(test) <= 240  # 200 expected, σ = √(1000·0.2·0.8) = 12.6
    assert sorted([*train.text, *test.text]) == sorted(many(1000).text)
    longer = split(many(2000).take(reversed(range(2000))), 0.2, seed=3)[1]
    assert set(test.text) <= set(longer.text) and not set(train.text) & set(longer.text)
    assert set(split(many(1000), 0.2, seed=4)[1].text) != set(test.text)
    # sha256("0/a") begins with d321, so u = 0xd321 / 2^16 = 0.8247
    assert held_out_by_hash("a", 0.825, 0) and not held_out_by_hash("a", 0.824, 0)


def test_a_file_holds_out_a_share_of_itself(tmp_path):
    file = lines(tmp_path / "p.txt", *(f"prompt {i}" for i in range(200)))
    source = FilePrompts(file, select=Select(test_fraction=0.25))
    held = source.held_out(10**6).text
    walked = source.build(0).next(200 - len(held)).text
    assert 30 <= len(held) <= 70 and not set(held) & set(walked) and len(set(walked)) == 200 - len(held)
    assert source.held_out(5).text == held[:5]
    with pytest.raises(ConfigError, match="got both"):
        FilePrompts(file, file, Select(test_fraction=0.25)).check()
    with pytest.raises(ConfigError, match="all of them held out"):
        FilePrompts(lines(tmp_path / "one.txt", "prompt 1"), select=Select(test_fraction=0.999999)).build(0)


@pytest.mark.parametrize("how", ["keep", "drop"])
def test_repetitions_are_kept_or_dropped_and_reported(tmp_path, how):
    train = lines(tmp_path / "train.txt", "a", "b", "a", "c", "a")
    test = lines(tmp_path / "test.txt", "d", "d", "b")
    source = FilePrompts(train, test, Select(duplicates=how))
    notes = source.check()
    assert len(notes) == 3 and {"keep": "(kept", "drop": "(dropped"}[how] in notes[0]
    assert "2 of 5 train prompts repeat" in notes[0] and "1 of 3 test prompts repeat" in notes[1]
    assert "1 test prompts are also trained on" in notes[2]
    assert sorted(source.build(0).next(5 if how == "keep" else 3).text) == (list("aaabc") if how == "keep" else list("abc"))
    assert source.held_out(9).text == (["d", "d", "b"] if how == "keep" else ["d", "b"])


def test_repetitions_are_said_by_the_check_of_a_recipe_and_written_into_the_run(tmp_path):
    from studio.launch import open_run
    from studio.run import RunView

    file = lines(tmp_path / "p.txt", "a red circle", "a red circle")
    overrides = [f"prompts={{name: file, train: {file}}}"]
    assert any("1 of 2 train prompts repeat" in text for text in load_recipe("shapes/grpo-guard", overrides)[0].check())
    open_run("shapes/grpo-guard", overrides, runs=tmp_path, run_name="r", resume=False, processes=1)
    events = RunView.open(tmp_path / "r").events()
    assert [e["message"] for e in events if e["kind"] == "warning"] == [
        "prompts: 1 of 2 train prompts repeat an earlier one (kept; prompts.select.duplicates=drop drops them)"
    ]


WEIGHTS = [0.0, 1.0, 2.0, 5.0]  # of four prompts: 0, 1/2, 1 and 5/2 times a pass of four draws


def test_weights_are_met_without_bias():
    source = Shuffled(some("zero", "one", "two", "five"), 0, WEIGHTS)
    passes = 4000
    seen, first = Counter(), Counter()
    for _ in range(passes):
        drawn = source.next(4).text
        first[drawn[0]] += 1
        counts = Counter(drawn)
        seen += counts
        assert counts["zero"] == 0 and counts["one"] in (0, 1) and counts["two"] == 1 and counts["five"] in (2, 3)
    assert seen["two"] == passes
    assert seen["one"] / passes == pytest.approx(0.5, abs=4 * 0.5 / passes**0.5)  # 4σ of a coin
    assert seen["five"] / passes == pytest.approx(2.5, abs=4 * 0.5 / passes**0.5)
    for name, share in (("one", 1 / 8), ("two", 1 / 4), ("five", 5 / 8)):  # and every single draw has the right odds
        assert first[name] / passes == pytest.approx(share, abs=4 * (share * (1 - share) / passes) ** 0.5)


def test_weights_that_do_not_divide_a_pass_are_met_too():
    """Shares 2/5 and 8/5 of a pass of two: a grid of points that always starts at 0 would take the first in half the passes."""
    drawn = Shuffled(some("rare", "often"), 0, [1.0, 4.0]).next(8000).text
    assert drawn.count("rare") / 4000 == pytest.approx(0.4, abs=4 * (0.4 * 0.6 / 4000) ** 0.5)


def test_rare_prompts_do_not_exclude_each_other():
    """Two neighbors of half a place each share one point of the line; in a fixed order they would never meet in a pass."""
    source = Shuffled(some("a", "b", "c", "d"), 0, [1.0, 1.0, 3.0, 3.0])
    assert {frozenset(source.next(4).text) & {"a", "b"} for _ in range(200)} >= {frozenset("ab"), frozenset("a"), frozenset("b")}


def test_equal_weights_are_a_permutation_and_large_weights_no_surprise():
    texts = [f"t{i}" for i in range(7)]
    equal = Shuffled(some(*texts), 3, [0.1] * 7)
    for _ in range(50):
        assert sorted(equal.next(7).text) == texts
    alone = Shuffled(some("a", "b"), 0, [1e-300, 1e300])
    assert set(alone.next(1000).text) == {"b"}


@pytest.mark.parametrize("before", [0, 3, 4, 21])
def test_weighted_draws_continue_from_the_position(before):
    def build():
        return Shuffled(some("a", "b", "c", "d"), 5, WEIGHTS)

    whole, parted = build(), build()
    for _ in range(before):
        whole.next(1), parted.next(1)
    state = json.loads(json.dumps(parted.state_dict()))
    assert set(state) == {"position"}
    resumed = build()
    resumed.load_state_dict(state)
    assert whole.next(30).text == resumed.next(30).text


def test_weights_come_from_a_named_field_of_the_records(tmp_path):
    records = [{"prompt": "a", "share": 3, "n": 1}, {"prompt": "b", "share": 1, "n": 2}]
    source = FilePrompts(lines(tmp_path / "p.jsonl", *records), select=Select(weight="share"))
    drawn = source.build(0).next(2000)  # 1000 passes of two draws, each with one or two of a
    assert Counter(drawn.text)["a"] / 2000 == pytest.approx(0.75, abs=4 * 0.25 / 1000**0.5)
    assert {info["share"] for info in drawn.info} == {1, 3}  # the field stays: a reward may read it too
    assert sorted(FilePrompts(source.train).build(0).next(2).text) == ["a", "b"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1, None], "got None for 'b'"),
        ([1, -1], "got -1 for 'b'"),
        ([1, "2"], "got '2'"),
        ([1, float("nan")], "got nan"),
        ([0, 0], "only zeros"),
    ],
)
def test_weights_that_cannot_be_used(values, says):
    with pytest.raises(ConfigError, match=says):
        weights_of(some("a", "b", w=values), "w")


GOOD = {"tag": "position", "prompt": "a dog left of a cat"}
GOOD |= {"include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}]}


def test_geneval_metadata_reaches_the_reward(tmp_path):
    more = {
        "tag": "counting",
        "prompt": "two cats",
        "include": [{"class": "cat", "count": 2}],
        "exclude": [{"class": "cat", "count": 3}],
    }
    prompts = GenEvalPrompts(lines(tmp_path / "m.jsonl", GOOD, more)).build(0).prompts
    assert prompts.text == ["a dog left of a cat", "two cats"]
    assert prompts.info[0] == {"tag": "position", "include": GOOD["include"]}
    assert prompts.info[1]["exclude"] == [{"class": "cat", "count": 3}]


def test_held_out_geneval_prompts_are_of_every_tag(tmp_path):
    tags = ["single_object", "two_object", "counting", "colors"]
    rows = [{"tag": tag, "prompt": f"{tag} {i}", "include": [{"class": "cat", "count": 1}]} for tag in tags for i in range(50)]
    held = GenEvalPrompts("-", lines(tmp_path / "t.jsonl", *rows)).held_out(8)
    assert Counter(info["tag"] for info in held.info) == dict.fromkeys(tags, 2)
    assert spread(many(3), 9).text == many(3).text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tag": "size"}, "a tag of single_object"),
        ({"include": []}, "not empty"),
        ({"include": [{"class": "cat"}]}, "a count of at least 1"),
        ({"include": [{"class": "cat", "count": 0}]}, "a count of at least 1"),
        ({"include": [{"class": "cat", "count": 1, "position": ["left of", 1]}]}, "index below 1"),
        ({"exclude": [{"count": 1}]}, "objects with a class"),
        ({"include": None}, "a JSON object with 'include'"),
    ],
    ids=["tag", "nothing to show", "no count", "count 0", "position of nothing", "exclude without class", "no include"],
)
def test_geneval_rows_that_are_wrong_are_named_by_their_line(tmp_path, change, says):
    with pytest.raises(ConfigError, match=r"m.jsonl:2: expected .*" + says):
        GenEvalPrompts(lines(tmp_path / "m.jsonl", GOOD, GOOD | change)).build(0)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "edits"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.new("RGB", (2, 2)).save(folder / name)
    Image.new("RGB", (2, 2)).save(tmp_path / "outside.png")
    return folder


def test_editing_tasks_carry_their_pictures(pictures):
    lines(
        pictures / "metadata.jsonl",
        {"file_name": "a.png", "prompt": "add a hat", "count": 2},
        {"file_name": "sub/b.png", "prompt": "add a hat", "reference": "a.png"},
        {"image": "a.png", "prompt": "add a hat"},
    )
    source = EditPrompts(str(pictures), select=Select(duplicates="drop"))
    prompts = source.build(0).prompts
    assert prompts.info == [
        {"count": 2, "image": str(pictures / "a.png")},
        {"image": str(pictures / "sub/b.png"), "reference": str(pictures / "a.png")},
    ]
    assert source.check() == ["prompts: 1 of 3 train prompts repeat an earlier one (dropped)"]
    assert prompts.key[0] != prompts.key[1]  # the same words about another picture


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"file_name": "../outside.png"}, "inside the folder, got '../outside.png'"),
        ({"file_name": "sub/../a.png"}, "inside the folder"),
        ({"file_name": "/etc/passwd"}, "inside the folder"),
        ({"file_name": "link.png"}, "inside the folder"),
        ({"file_name": "a.png", "reference": "../outside.png"}, "inside the folder"),
        ({"file_name": 3}, "inside the folder"),
        ({"file_name": "none.png"}, "which is none"),
        ({"file_name": "metadata.jsonl"}, "which is none"),
        ({}, "expected a 'file_name'"),
    ],
    ids=["parent", "dots", "absolute", "link", "reference", "number", "missing", "no picture", "no name"],
)
def test_pictures_that_lie_elsewhere_or_nowhere_are_refused(pictures, tmp_path, record, says):
    (pictures / "link.png").symlink_to(tmp_path / "outside.png")
    lines(pictures / "metadata.jsonl", {"file_name": "a.png", "prompt": "x"}, {"prompt": "add a hat", **record})
    with pytest.raises(ConfigError, match=r"metadata.jsonl:2: .*" + says):
        EditPrompts(str(pictures)).build(0)


def test_without_the_library_a_dataset_is_a_clear_error(tmp_path):
    file = lines(tmp_path / "p.csv", "prompt,n", "a cat,1")
    code = (
        "import sys\nsys.modules['datasets'] = None\n"
        "from studio.prompts.dataset import DatasetPrompts\n"
        f"try:\n    DatasetPrompts({file!r}).build(0)\n"
        "except Exception as error:\n    print(type(error).__name__, error.exit_code, error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("MissingError 3") and "pip install 'alignment-studio[data]'" in said


@pytest.mark.parametrize("name", ["nowhere", "owner/name", "p.xlsx"])
def test_what_is_no_local_dataset_is_refused_and_never_fetched(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.xlsx").touch()
    with pytest.raises(ConfigError, match="load_dataset.NAME..save_to_disk"):
        DatasetPrompts(name).build(0)


def test_saved_datasets_and_local_files(tmp_path):
    import datasets

    table = datasets.Dataset.from_dict({"caption": ["a", "b", "c"], "n": [1, 2, 3]})
    datasets.DatasetDict(train=table, validation=datasets.Dataset.from_dict({"caption": ["c"], "n": [3]})).save_to_disk(
        tmp_path / "saved"
    )
    source = DatasetPrompts(str(tmp_path / "saved"), column="caption", test_split="validation")
    assert source.build(0).prompts.info == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert source.held_out(5).text == ["c"]
    assert "1 test prompts are also trained on" in source.check()[0]
    table.save_to_disk(tmp_path / "single")
    assert DatasetPrompts(str(tmp_path / "single"), column="caption").build(0).prompts.text == ["a", "b", "c"]
    table.to_parquet(tmp_path / "p.parquet")
    assert DatasetPrompts(str(tmp_path / "p.parquet"), column="caption").build(0).prompts.key[0] == key_of("a")
    with pytest.raises(ConfigError, match="column: expected one of caption, n, got 'prompt'"):
        DatasetPrompts(str(tmp_path / "single")).build(0)
    with pytest.raises(ConfigError, match="split: expected one of train, validation, got 'test'"):
        DatasetPrompts(str(tmp_path / "saved"), column="caption", split="test").build(0)


def test_repetitions_are_counted_by_key():
    assert repetition(["a", "b", "a", "a", "b"]) == [0, 0, 1, 2, 1]
