"""The text in the picture: the formula by hand, prompts with and without quotes, and a real engine on rendered words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from zoo import prompts

from rewards.image import ocr_engines
from rewards.image.ocr import Ocr, ocr_score, target_of
from rewards.score import check_prompts
from studio.errors import ConfigError, MissingError


def rendered(*words: str, color=(0, 0, 0)) -> torch.Tensor:
    """The words in print on white, [N, 3, 96, 320]."""
    pictures = []
    for word in words:
        picture = Image.new("RGB", (320, 96), "white")
        ImageDraw.Draw(picture).text((24, 24), word, fill=color, font=ImageFont.load_default(40))
        pictures.append(np.asarray(picture))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(
    ("read", "target", "score"),
    [
        ("say hello world", "Hello", 1.0),
        ("helo", "Hello", 0.8),  # one letter of five
        ("", "Hello", 0.0),
        ("q" * 40, "Hello", 0.0),  # the distance is cut at the length of the target
        ("HEL\tLO", "h e l l o", 1.0),  # neither case nor white space counts
        ("jello", "hello", 0.8),
    ],
)
def test_formula_by_hand(read, target, score):
    assert ocr_score(read, target) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "info", "target"),
    [
        ('a sign that says "Open" beside "Closed"', {}, "Open"),
        ("just a prompt", {}, "just a prompt"),
        ('half a "quote', {}, 'half a "quote'),
        ('a "sign"', {"target_text": "Other"}, "Other"),
    ],
    ids=["first pair", "no quotes: the whole prompt", "one quote", "given"],
)
def test_target(text, info, target):
    assert target_of(text, info) == target


def test_a_prompt_that_asks_for_no_text_is_refused_before_sampling():
    with pytest.raises(ConfigError, match="expected text to render"):
        check_prompts({"ocr": Ocr()}, prompts('a sign that says " "'))


def test_the_real_engine_reads_rendered_words():
    images = torch.cat([rendered("Hello", "Hello", color=(200, 0, 0)), torch.ones(1, 3, 96, 320)])
    scores = Ocr()(images, prompts('a sign that says "Hello"', 'a sign that says "Bridge"', 'a sign that says "Hello"'))
    right, wrong, blank = scores.value.tolist()
    assert right == 1 and wrong < 0.5 and blank == 0
    assert scores.present.all()


def test_a_picture_that_breaks_the_engine_is_missing_and_not_zero(monkeypatch):
    def fragile(picture):
        return None if picture.mean() < 10 else ["hello"]

    monkeypatch.setitem(ocr_engines.ENGINES, "rapidocr", lambda: fragile)
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    scores = Ocr()(images, prompts("hello", "hello"))
    assert scores.present.tolist() == [False, True] and scores.value[1] == 1


def test_rapidocr_gets_bgr_and_its_exceptions_are_failures(monkeypatch):
    class Result:
        txts = None

    class Package:
        class RapidOCR:
            def __init__(self, params):
                self.params = params

            def __call__(self, picture):
                if picture[0, 0].tolist() != [3, 2, 1]:
                    raise ValueError(f"not BGR: {picture[0, 0]}")
                return Result()

    monkeypatch.setattr(ocr_engines, "require", lambda *names: Package)
    ocr_engines.rapidocr.cache_clear()
    try:
        rgb = np.array([[[1, 2, 3]]], np.uint8)
        assert ocr_engines.rapidocr()(rgb) == [] and ocr_engines.rapidocr()(rgb[..., ::-1]) is None
    finally:
        ocr_engines.rapidocr.cache_clear()


def fake_tesseract(folder, body: str, monkeypatch) -> None:
    (folder / "tesseract").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "tesseract").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_tesseract_is_asked_with_a_png_on_stdin(tmp_path, monkeypatch):
    fake_tesseract(tmp_path, f'cat > {tmp_path}/in.png; echo "$@" > {tmp_path}/args; echo "Hel lo"; echo', monkeypatch)
    images = rendered("x")
    assert Ocr("tesseract")(images, prompts('"Hello"')).value.tolist() == [1.0]
    assert (tmp_path / "args").read_text().split() == ["stdin", "stdout", "-l", "eng"]
    sent = torch.from_numpy(np.array(Image.open(tmp_path / "in.png"))).permute(2, 0, 1) / 255
    torch.testing.assert_close(sent, images[0])


def test_tesseract_failing_is_missing_and_absent_is_an_error(tmp_path, monkeypatch):
    fake_tesseract(tmp_path, "exit 1", monkeypatch)
    assert Ocr("tesseract")(rendered("x"), prompts('"Hello"')).present.tolist() == [False]
    (tmp_path / "tesseract").unlink()
    if not ocr_engines.shutil.which("tesseract"):
        with pytest.raises(MissingError, match="tesseract-ocr"):
            Ocr("tesseract")(rendered("x"), prompts('"Hello"'))


def test_an_absent_package_is_answered_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rapidocr", None)
    ocr_engines.rapidocr.cache_clear()
    with pytest.raises(MissingError, match=r"reward 'ocr'.*alignment-studio\[ocr\]"):
        Ocr()(rendered("x"), prompts('"Hello"'))
