"""Which samples are compared, by how much they differ, and what votes add up to: by hand."""

from __future__ import annotations

import json
import math
import zipfile

import pytest
from made_runs import make_run

from studio.errors import RunError
from studio.files import append
from ui import blind, preferences, votes
from ui.compared import told
from ui.pairs import Pair, Side, delta, difference, differing, match, ordered, unmatched
from ui.site import Site


def record(prompt="p", sample="s00", seed=1, **rewards):
    return {"prompt": prompt, "sample_id": sample, "seed": seed, "rewards": rewards}


def test_samples_match_by_prompt_number_and_seed():
    first = [record("a", seed=1), record("a", seed=2), record("b"), record("c", "s01")]
    second = [record("c", "s01"), record("b", seed=9), record("a", seed=2), record("c", "s00")]
    assert [pair.key for pair in match(first, second)] == [("a", "s00", "2"), ("c", "s01", "1")]


def test_differences_by_hand():
    found = difference("scene", [0, 0, 1, 0.5], [1, 0, 0.5, 1])  # 1, 0, -.5, .5
    assert (found.first, found.second, found.change) == (0.375, 0.625, 0.25)
    assert math.isclose(found.error, math.sqrt(1.25 / 3 / 4))
    assert (found.wins, found.ties, found.count, found.rate) == (2, 1, 4, 0.625) and not found.clear
    alone = difference("scene", [0.0], [1.0])
    assert alone.error is None and not alone.clear
    assert told(found.change, found.error) == "+0.25 ± 0.32" and told(-0.0512, 0.0012) == "−0.0512 ± 0.0012" and told(0.0) == "0"


def test_pairs_in_the_order_of_one_score_and_those_without_it_last():
    values = {"up": (0.0, 1.0), "same": (0.5, 0.5), "down": (2.0, 0.5), "none": (float("nan"), 1.0)}
    pairs = [Pair(record(name, scene=x), record(name, scene=y)) for name, (x, y) in values.items()]
    names = lambda order: [pair.prompt for pair in ordered(pairs, "scene", order)]  # noqa: E731
    assert names("largest gain") == ["up", "same", "down", "none"]
    assert names("largest loss") == ["down", "same", "up", "none"]
    assert names("largest change") == ["down", "up", "same", "none"]
    assert names("as evaluated") == list(values)
    assert delta(pairs[3], "scene") is None


def test_wilson_interval_of_published_examples():
    assert votes.wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-5)
    assert votes.wilson(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-5)
    assert votes.wilson(10, 10) == pytest.approx((1 - 0.277533, 1.0), abs=1e-5)
    low, high = votes.wilson(5, 10)
    assert low + high == pytest.approx(1.0)


def test_the_coin_is_fair_the_same_again_and_another_with_another_secret():
    keys = [("p", "s00", str(k)) for k in range(1000)]
    one, two = ([votes.first_is_left(secret, key) for key in keys] for secret in (b"a" * 32, b"b" * 32))
    assert one == [votes.first_is_left(b"a" * 32, key) for key in keys]
    assert 400 < sum(one) < 600 and 400 < sum(x == y for x, y in zip(one, two, strict=True)) < 600


@pytest.fixture
def site(tmp_path):
    for name in ("pictures", "words"):
        make_run(tmp_path, name, "text" if name == "words" else "image")
    return Site(tmp_path)


def sides(site, name):
    return Side.of(site.run(name), 0), Side.of(site.run(name), 20)


def voted(site, name, wishes):
    """Votes for the second side ("second"), the first or none, in the order of the ballot."""
    first, second = sides(site, name)
    pairs = {pair.key: pair for pair in match(first.records(), second.records())}
    ballot = blind.ballot(site, first, second, list(pairs.values()))
    for wish in wishes:
        left = "first" if ballot.key and votes.first_is_left(ballot.secret, ballot.key) else "second"
        choice = wish if wish in ("tie", "undo") else "left" if wish == left else "right"
        ballot = blind.press(site, ballot, ballot.token, choice, pairs)
    return first, second, list(pairs.values()), ballot


def test_a_vote_names_the_side_that_was_chosen_wherever_it_stood(site):
    for _ in range(8):  # places are drawn anew every time
        first, second, pairs, _ = voted(site, "pictures", ["second", "second", "undo", "undo"])
    assert votes.read(site.root) == []
    voted(site, "pictures", ["second", "tie"])
    (one, two), (a, b) = votes.read(site.root), ("pictures/samples/000020/", "pictures/samples/000000/")
    assert one["chosen"].startswith(a) and one["rejected"].startswith(b) and not one["tie"] and one["kind"] == "image"
    assert one["sides"]["chosen"] == {"run": "pictures", "step": 20, "sample_id": "s00", "seed": int(one["prompt"][-1])}
    assert (site.root / one["chosen"]).is_file() and two["tie"] and two["chosen"].startswith(b)
    found = votes.tally(votes.between([one, two], first, second), second)
    assert found == (1, 1, 0) and found.rate == 0.75 and votes.tally([one, two], first) == (0, 1, 1)
    assert votes.agreement([one, two], pairs, second)["scene"] == (1.0, 1)  # later samples score higher
    assert votes.between([one, two], first, Side.of(site.run("words"), 20)) == []


def test_a_ballot_skips_what_has_a_vote_and_a_late_press_changes_nothing(site):
    first, second, pairs, ballot = voted(site, "words", ["first"])
    assert votes.agreement(votes.read(site.root), pairs, second)["scene"] == (0.0, 1)  # the second one scores higher
    assert len(blind.ballot(site, first, second, pairs).order) == 1
    assert len(blind.ballot(site, first, second, pairs, again=True).order) == 2
    known = {pair.key: pair for pair in pairs}
    assert blind.press(site, ballot, "of an earlier pair", "left", known) == ballot
    assert blind.press(site, ballot, ballot.token, "middle", known) == ballot
    assert len(votes.read(site.root)) == 1


def test_broken_lines_are_no_votes(site):
    append(site.root / votes.FILE, [{"id": "x"}, {"undo": 3}, {"id": "y", "prompt": "p", "kind": "text", "chosen": 1}])
    with open(site.root / votes.FILE, "a") as handle:
        handle.write("{broken\n")
    assert votes.read(site.root) == []


def test_texts_are_exported_as_the_text_branch_reads_pairs(site):
    import torch

    from studio.prompts.source import read_prompts
    from studio.text.given import check_pairs, pair_answers

    voted(site, "words", ["second", "tie"])
    made = preferences.export(site.root, votes.read(site.root), "text")
    assert (made.pairs, made.undecided, made.lost) == (1, 1, 0)
    prompts = read_prompts(made.folder / preferences.FILE)
    check_pairs(prompts)
    k = prompts.text[0][-1]
    answers = pair_answers(prompts.take([0, 0]), torch.zeros(2, dtype=torch.long))
    assert answers == [f"answer {k} at step 20", f"answer {k} at step 0"]
    with pytest.raises(RunError, match="expected a pair of images"):
        preferences.export(site.root, votes.read(site.root), "image")


def test_pictures_are_exported_with_copies_and_files_elsewhere_are_not_read(site, tmp_path):
    voted(site, "pictures", ["second", "first"])
    (site.root / "secret.png").write_bytes(b"not a sample")
    good = votes.read(site.root)
    elsewhere = ("secret.png", "pictures/samples/../../secret.png", "pictures/export/000000/p000-s00.png")
    bad = [{**good[0], "id": str(k), "chosen": path} for k, path in enumerate(elsewhere)]
    made = preferences.export(site.root, [*good, *bad], "image")
    assert (made.pairs, made.lost) == (2, 3)
    lines = [json.loads(line) for line in (made.folder / preferences.FILE).read_text().splitlines()]
    assert [set(line) for line in lines] == [{"prompt", "chosen", "rejected"}] * 2
    for line, vote in zip(lines, good, strict=True):
        for which in ("chosen", "rejected"):
            assert (made.folder / line[which]).read_bytes() == (site.root / vote[which]).read_bytes()
    assert len(list((made.folder / "pictures").iterdir())) == 2  # all pictures of a step are the same here
    with zipfile.ZipFile(preferences.packed(made, "image", tmp_path)) as archive:
        assert {name.partition("/")[2] for name in archive.namelist()} >= {
            "preferences.jsonl",
            lines[0]["chosen"],
            lines[0]["rejected"],
        }


def test_the_majority_decides_and_one_for_each_is_no_preference():
    vote = lambda chosen, rejected, tie=False: {"prompt": "p", "chosen": chosen, "rejected": rejected, "tie": tie}  # noqa: E731
    assert preferences.decided([vote("a", "b"), vote("b", "a"), vote("a", "b")]) == ([("p", "a", "b")], 0)
    assert preferences.decided([vote("a", "b"), vote("b", "a"), vote("c", "d", tie=True)]) == ([], 2)


def test_the_remedy_fits_why_nothing_matches(tmp_path):
    for name in ("one", "two"):
        make_run(tmp_path, name, "image")
    site = Site(tmp_path)
    file = tmp_path / "two" / "samples" / "000020" / "samples.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    one, two = Side.of(site.run("one")), Side.of(site.run("two"))
    file.write_text("".join(json.dumps(line | {"seed": 77 + k}) + "\n" for k, line in enumerate(lines)))
    assert match(one.records(), two.records()) == [] and "2 prompts are on both sides" in unmatched(one, two)
    file.write_text("".join(json.dumps(line | {"prompt": "other"}) + "\n" for line in lines))
    assert "No prompt is on both sides (2 and 1 prompts)" in unmatched(one, two)
    assert "two has no samples yet" in unmatched(one, Side(two.view, None))
    file.write_text(json.dumps(lines[0] | {"path": "../one/recipe.yaml"}) + "\n")
    assert two.records() == []  # nothing of another run is shown


def test_equal_answers_are_not_put_to_the_vote():
    same, other = {**record("a"), "text": "x"}, {**record("b"), "text": "x"}
    assert differing([Pair(same, same), Pair(other, other | {"text": "y"})]) == [Pair(other, other | {"text": "y"})]
