"""Every prompt is sampled exactly K times whatever the number of ranks, and sources continue where they stopped."""

import json

import pytest

from flows.shapes.prompts import ShapesPrompts
from studio.errors import ConfigError
from studio.prompts.repeat import rank_rows
from studio.prompts.source import FilePrompts, Shuffled, read_prompts
from studio.types import Prompts


def some(count: int) -> Prompts:
    return Prompts([f"text {i}" for i in range(count)], [f"key {i}" for i in range(count)], [{"i": i} for i in range(count)])


@pytest.mark.parametrize(("count", "per_prompt", "world"), [(3, 4, 1), (3, 4, 2), (3, 4, 3), (3, 4, 4), (5, 6, 10), (2, 2, 4)])
def test_the_ranks_together_hold_each_prompt_k_times(count, per_prompt, world):
    ranks = [rank_rows(some(count), per_prompt, rank, world) for rank in range(world)]
    assert {len(rows.prompts) for rows in ranks} == {count * per_prompt // world}
    pairs = [pair for rows in ranks for pair in zip(rows.group, rows.replica, strict=True)]
    assert pairs == [(g, k) for g in range(count) for k in range(per_prompt)]  # each once, in the order of ranks
    assert [rows.start for rows in ranks] == [rank * count * per_prompt // world for rank in range(world)]
    for rows in ranks:
        assert rows.prompts.text == [f"text {g}" for g in rows.group]
        assert rows.prompts.info == [{"i": g} for g in rows.group]


def test_equal_prompts_are_separate_groups():
    twice = some(1).take([0, 0])
    assert rank_rows(twice, 2).group == [0, 0, 1, 1]


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="divide over 5 processes, got 3 × 4 = 12"):
        rank_rows(some(3), 4, 0, 5)


SOURCES = {"shuffled": lambda seed: Shuffled(some(5), seed), "shapes": ShapesPrompts().build}


@pytest.mark.parametrize("build", SOURCES.values(), ids=SOURCES)
def test_ranks_agree_and_steps_differ(build):
    a, b, other = build(3), build(3), build(4)
    steps = [a.next(4).text for _ in range(6)]
    assert steps == [b.next(4).text for _ in range(6)]
    assert len({tuple(step) for step in steps}) > 1
    assert steps != [other.next(4).text for _ in range(6)]


@pytest.mark.parametrize("build", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_source_continues_exactly(build, before):
    whole, parted = build(3), build(3)
    for _ in range(before):
        whole.next(3), parted.next(3)
    state = json.loads(json.dumps(parted.state_dict()))
    resumed = build(3)
    resumed.next(7)  # a source that was already used
    resumed.load_state_dict(state)
    for _ in range(4):
        x, y = whole.next(3), resumed.next(3)
        assert (x.text, x.key, x.info) == (y.text, y.key, y.info)


def test_a_shuffled_pass_holds_each_prompt_once_and_the_next_is_in_another_order():
    source = Shuffled(some(7), 0)
    first, second = source.next(7).text, source.next(7).text
    assert sorted(first) == sorted(second) == some(7).text
    assert first != second
    assert len(Shuffled(some(2), 0).next(5)) == 5  # more than the list has


def test_held_out_captions_are_never_trained_on():
    held_out = set(ShapesPrompts().held_out(64).text)
    assert len(held_out) == 64
    assert not held_out & set(ShapesPrompts().build(0).next(2000).text)


def test_text_and_jsonl_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n  two \n", encoding="utf-8")
    assert read_prompts(tmp_path / "a.txt").text == ["one", "two"]
    (tmp_path / "a.jsonl").write_text('{"prompt": "one", "target": 1}\n{"prompt": "two"}\n', encoding="utf-8")
    prompts = read_prompts(tmp_path / "a.jsonl")
    assert prompts.text == ["one", "two"] and prompts.info == [{"target": 1}, {}]
    assert prompts.key == read_prompts(tmp_path / "a.txt").key  # the key is of the text alone
    assert len(FilePrompts(str(tmp_path / "a.txt")).held_out(5)) == 0
    assert FilePrompts("-", str(tmp_path / "a.txt")).held_out(1).text == ["one"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "at least one prompt"),
        ("a.txt", b"\xff\xfe\x00", "readable UTF-8 file"),
        ("a.jsonl", b'{"prompt": "x"}\n{"text": "y"}\n', r"a.jsonl:2: expected a JSON object with 'prompt'"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_prompts(tmp_path / name)


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        read_prompts("/nowhere/prompts.txt")
