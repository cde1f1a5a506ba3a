"""Prompts for written words: what is asked for, what is held out, and that a stream continues where it stopped."""

import pytest

from rewards.image.ocr import target_of
from studio.prompts.lettering import FIRST, LetteringPrompts, is_held_out, prompt_of


@pytest.mark.parametrize("words", [1, 2, 3])
def test_the_reward_finds_the_text_that_was_asked_for(words):
    prompts = LetteringPrompts(words).build(3).next(60)
    for text, info in zip(prompts.text, prompts.info, strict=True):
        assert target_of(text, {}) == info["target_text"] == target_of(text, info)
        assert text.endswith(f'"{info["target_text"]}"') and 1 <= len(info["target_text"].split()) <= words
    assert {len(info["target_text"].split()) for info in prompts.info} == set(range(1, words + 1))


def test_held_out_texts_are_never_trained_on():
    source = LetteringPrompts(2)
    trained = {info["target_text"] for info in source.build(0).next(2000).info}
    tested = source.held_out(64)
    assert len(set(tested.text)) == 64 and len(trained) > 100
    assert not trained & {info["target_text"] for info in tested.info}
    assert all(is_held_out(info["target_text"]) for info in tested.info)
    assert source.held_out(64).text == tested.text and source.held_out(8).text == tested.text[:8]


def test_about_one_text_in_eight_is_held_out():
    texts = [f"{first} {number}" for first in FIRST for number in range(100)]
    share = sum(map(is_held_out, texts)) / len(texts)
    assert 0.1 < share < 0.15  # 1/8 within three standard errors of 1400 texts


def test_a_stream_continues_where_it_stopped():
    whole = LetteringPrompts().build(5).next(10).text
    parted = LetteringPrompts().build(5)
    first = parted.next(4).text
    again = LetteringPrompts().build(5)
    again.load_state_dict(parted.state_dict())
    assert first + again.next(6).text == whole
    assert LetteringPrompts().build(6).next(10).text != whole


def test_fewer_held_out_prompts_than_asked_for_are_all_there_are():
    """One word: 14 texts, some of them held out, times 16 places."""
    prompts = LetteringPrompts(1).held_out(10_000)
    texts = [first.title() for first in FIRST if is_held_out(first.title())]
    assert len(prompts) == 16 * len(texts) > 0
    assert prompt_of("A white coffee mug printed with", texts[0]) in prompts.text
