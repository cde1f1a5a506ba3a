"""Every reward of the table over a folder through `studio score`, with tiny weights in a local folder; and user functions."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from test_judge_rewards import judging, says, tokens
from test_ocr_reward import rendered
from test_remote_reward import serving
from typer.testing import CliRunner
from zoo import prompts, save_clip, save_head, save_hps, save_hpsv3, save_image_reward, save_siglip, save_yolos, smooth

from rewards import REWARDS
from rewards.function import Function
from rewards.image.jpeg import JpegCompressibility, JpegIncompressibility, JpegSize
from rewards.pictures import as_png, as_tensor, open_file, read_picture
from rewards.score import check_prompts, score_all
from studio import registry
from studio.cli import app
from studio.errors import ConfigError, RewardError
from studio.score_folder import read_folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, save in {
        "clip": save_clip,
        "siglip": save_siglip,
        "head": save_head,
        "hps": save_hps,
        "hpsv3": save_hpsv3,
        "image_reward": save_image_reward,
        "yolos": save_yolos,
    }.items():
        (root / name).mkdir()
        save(root / name)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three pictures with captions of the bundled world and everything that a reward asks of a prompt."""
    root = tmp_path_factory.mktemp("pictures")
    pictures = [*smooth(2, 96, 320), rendered("Hello")[0]]
    lines = []
    for row, picture in enumerate(pictures):
        Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(root / f"{row}.png")
        line = {"file": f"{row}.png", "prompt": "a red circle", "target_text": "Hello", "reference": "0.png"}
        lines.append(line | {"tag": "color_attr", "include": [{"class": "dog", "count": 1, "color": "red"}]})
    (root / "samples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def arguments(name: str, models, url: str) -> list[str]:
    """The `key=value` arguments with which a reward finds its tiny weights or its server."""
    clip, cpu = f"model={models / 'clip'}", "device=cpu"
    hps, three, blip = (models / part for part in ("hps", "hpsv3", "image_reward"))
    pick = [clip, f"processor={models / 'clip'}", cpu]
    return {
        "clip_score": [clip, cpu],
        "siglip": [f"model={models / 'siglip'}", cpu],
        "pickscore": pick,
        "pickscore_rank": pick,
        "hpsv2": [f"model={hps}", f"architecture={hps / 'tiny.json'}", cpu],
        "hpsv3": [f"model={three}", f"base={three}", "dtype=float32", cpu],
        "image_reward": [f"model={blip}", f"blip={blip}", cpu],
        "aesthetic": [clip, f"head={models / 'head'}", "file=head.pth", cpu],
        "image_similarity": [clip, cpu],
        "geneval": [f"detector={models / 'yolos'}", f"clip={models / 'clip'}", cpu],
        "vlm_judge": [f"url={url}"],
        "unified_reward": [f"url={url}"],
        "deqa": [f"urls=[{url}]"],
        "remote": [f"urls=[{url}]"],
        "function": ["target=test_zoo:brightness"],
    }.get(name, [])


def test_sixteen_bits_of_gray_keep_their_shades(tmp_path):
    """convert("RGB") cuts them at 255, so that all but the darkest come out white."""
    gray = np.array([[0, 255, 32768, 65535]], dtype=np.uint16)
    expected = torch.tensor([0, 255, 32768, 65535]).div(65535).expand(3, 1, 4)
    file = as_png(Image.fromarray(gray))
    (tmp_path / "a.png").write_bytes(file)
    for picture in (as_tensor(open_file(file)), read_picture(tmp_path / "a.png"), read_folder(tmp_path, "a")[1][0]):
        torch.testing.assert_close(picture, expected, atol=1e-7, rtol=0)


def brightness(samples, given):
    return [None if image.mean() == 0 else image.mean().item() for image in samples]


def score(name: str, models, folder, url: str = "") -> dict:
    done = CliRunner().invoke(app, ["score", name, str(folder), *arguments(name, models, url), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.strip().splitlines()[-1])


OVER_HTTP = {"vlm_judge", "unified_reward", "deqa", "remote"}
LOCAL = sorted(name for name in REWARDS.keys() - OVER_HTTP if registry.lookup("reward", name).reads != "text")


@pytest.mark.parametrize("name", LOCAL)
def test_every_reward_scores_a_folder(name, models, folder, monkeypatch):
    monkeypatch.setattr("rewards.image.hpsv3.PIXELS", 16 * 16)
    said = score(name, models, folder)
    values = [row[name] for row in said["files"]]
    low, high = registry.lookup("reward", name)().range
    assert len(values) == 3 and all(np.isfinite(values)) and all(low <= value <= high for value in values)
    assert said["mean"][name] == pytest.approx(sum(values) / 3, abs=1e-6)
    if name not in ("scene", "geneval"):  # no picture shows a scene, and the detector is random
        assert len(set(values)) > 1, "the reward sees the pictures"
    if name == "ocr":
        assert values[2] == 1 and max(values[:2]) < 0.5
    if name == "pickscore_rank":
        assert sum(values) == pytest.approx(1)
    if name == "image_similarity":
        assert values[0] == pytest.approx(1, abs=1e-5) and values[2] < 1


def test_every_judge_scores_a_folder(models, folder):
    with judging(lambda text: tokens(Yes=0.8, No=0.2) | says("Final Score: 4")) as (url, _):
        for name in ("vlm_judge", "unified_reward"):
            assert score(name, models, folder, url)["mean"][name] == pytest.approx(0.8)


def test_every_server_scores_a_folder(models, folder):
    expected = score("jpeg_incompressibility", models, folder)["mean"]["jpeg_incompressibility"]
    for name, factor in (("remote", 1), ("deqa", 1 / 5)):
        with serving(JpegIncompressibility(), name) as server:
            assert score(name, models, folder, server.url)["mean"][name] == pytest.approx(expected * factor, rel=1e-6)


def test_list_prints_license_range_and_extra():
    lines = CliRunner().invoke(app, ["list", "rewards"], catch_exceptions=False).stdout.splitlines()
    line = {name: " ".join(line for line in lines if line.split()[:1] == [name]) for name in REWARDS}
    assert all("range " in said and "license: " in said for said in line.values()), line
    assert "needs alignment-studio[ocr]" in line["ocr"] and "range 0 to 1" in line["ocr"]


# ---- compressibility


def test_compressibility_is_minus_the_kilobytes_over_the_divisor():
    images = torch.rand(2, 3, 32, 32)
    kilobytes = JpegSize()(images, prompts("a", "b"))
    torch.testing.assert_close(JpegIncompressibility()(images, prompts("a", "b")), kilobytes)
    torch.testing.assert_close(JpegCompressibility()(images, prompts("a", "b")), -kilobytes)
    torch.testing.assert_close(JpegCompressibility(divisor=500)(images, prompts("a", "b")), -kilobytes / 500)


# ---- functions


def test_none_of_a_function_is_missing():
    images = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2) / 2])
    scores = score_all({"function": Function("test_zoo:brightness")}, images, prompts("a", "b"))["function"]
    assert scores.present.tolist() == [False, True] and scores.value[1] == 0.5


def test_gradients_pass_a_function_that_says_so(monkeypatch, tmp_path):
    (tmp_path / "twice_as_red.py").write_text("def red(samples, prompts):\n    return 2 * samples[:, 0].mean((1, 2))\n")
    monkeypatch.chdir(tmp_path)  # found in the current folder, as with the installed command
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    images = torch.zeros(1, 3, 2, 2, requires_grad=True)
    Function("twice_as_red:red", differentiable=True)(images, prompts("a")).sum().backward()
    assert images.grad[0, 0].flatten().tolist() == [0.5] * 4 and images.grad[0, 1:].sum() == 0


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("", "expected target=module:function"),
        ("test_zoo", "expected target=module:function"),
        ("no_such_module:f", "No module named"),
        ("test_zoo:none", "no attribute 'none'"),
        ("test_zoo:LOCAL", "to be a function, got list"),
    ],
)
def test_a_function_that_is_not_there_is_refused_before_sampling(target, words):
    with pytest.raises(ConfigError, match=words):
        check_prompts({"function": Function(target)}, prompts("a"))


def test_a_function_that_raises_stops_the_run():
    with pytest.raises(RewardError, match="AttributeError"):
        score_all({"function": Function("test_zoo:brightness")}, ["text"], prompts("a"))
