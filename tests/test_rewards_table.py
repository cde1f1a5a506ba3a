"""Rewards by name, the boundary that checks what they return, the memo, and the rewards that read a model."""

import math
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save_file
from zoo import TWO, prompts, save_clip, save_siglip

from rewards import REWARDS
from rewards.cached import Cached
from rewards.facts import Facts, one_line
from rewards.image.clip import ClipReward, image_settings, load_encoder, model_folder, preprocess
from rewards.image.jpeg import JpegSize
from rewards.image.pickscore import PickScore
from rewards.score import check_prompts, failure_rate, refuse_failures, score_all
from studio import registry
from studio.errors import ConfigError, MissingError, RewardError, ShapeError
from studio.types import Scores

NAN = math.nan


@dataclass(frozen=True)
class Given:
    """A reward that returns or raises what it was given."""

    result: object
    reads = "text"
    differentiable = False
    range = (0.0, 1.0)
    license = "none"
    model_id = None

    def __call__(self, samples, prompts):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class Counting:
    """Scores a text with its length, or the mean of a picture, and remembers how it was called; "" has no score."""

    reads, differentiable, range, license, model_id = "text", True, (0.0, 1.0), "none", None

    def __init__(self):
        self.calls = []

    def __call__(self, samples, prompts):
        self.calls.append(len(samples))
        if isinstance(samples, torch.Tensor):
            return samples.mean((1, 2, 3))
        value = torch.tensor([float(len(text)) for text in samples])
        return Scores(value, value > 0, {"double": 2 * value})


# ---- the table


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_every_reward_builds_and_declares_what_it_is(name):
    reward = registry.lookup("reward", name)()
    assert reward.name == name
    assert reward.reads in ("image", "text") and isinstance(reward.differentiable, bool)
    assert reward.range[0] < reward.range[1]
    assert isinstance(reward.facts, Facts) and reward.facts.source and reward.facts.preprocessing
    assert reward.license and (reward.model_id is None or isinstance(reward.model_id, str))
    assert reward == type(reward)(), "a reward is a value"


def test_a_listing_names_range_license_and_extra():
    line = one_line(registry.lookup("reward", "pickscore")())
    assert line == "range -3.84615 to 3.84615; license: code MIT; weights: see the model card"


def test_names_and_settings_of_rewards_are_read_without_torch():
    code = "import sys, rewards.score, rewards.combine, rewards.guards, rewards.cached; from studio import registry;"
    code += "[registry.lookup('reward', name)() for name in registry.names('reward')];"
    code += "sys.exit(sorted({'torch', 'transformers', 'scipy'} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- the boundary


def test_a_tensor_becomes_scores():
    scores = score_all({"given": Given(torch.tensor([1, 0]))}, ["x", "y"], TWO)["given"]
    assert scores.value.tolist() == [1.0, 0.0] and scores.value.dtype == torch.float32
    assert scores.present.tolist() == [True, True] and failure_rate(scores) == 0


def test_a_missing_row_is_zero_and_its_parts_are_nan():
    given = Scores(torch.tensor([0.5, NAN]), torch.tensor([True, False]), {"strict": torch.tensor([1.0, 1.0])})
    scores = score_all({"given": Given(given)}, ["x", "y"], TWO)["given"]
    assert scores.value.tolist() == [0.5, 0.0]
    assert scores.parts["strict"][0] == 1 and scores.parts["strict"][1].isnan()


def test_gradients_pass_the_boundary_but_not_of_missing_rows():
    x = torch.tensor([0.5, 0.7], requires_grad=True)
    given = Scores(x * 3, torch.tensor([True, False]))
    score_all({"given": Given(given)}, ["x", "y"], TWO)["given"].value.sum().backward()
    assert x.grad.tolist() == [3, 0]


@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        (torch.zeros(3), ShapeError, r"reward 'given': value has shape \[3\], expected \[B\] = \[2\]"),
        (torch.zeros(2, 1), ShapeError, r"\[2, 1\]"),
        (Scores(torch.zeros(2), torch.ones(1, dtype=torch.bool)), ShapeError, "present has shape"),
        (Scores(torch.zeros(2), None, {"strict": torch.zeros(5)}), ShapeError, "strict has shape"),
        (torch.tensor([0.0, NAN]), RewardError, r"got nan for sample 1 \(1 of 2.*as missing"),
        (torch.tensor([math.inf, 0.0]), RewardError, "got inf for sample 0"),
        ([0.1, 0.2], RewardError, "got list"),
        (ZeroDivisionError("by zero"), RewardError, "ZeroDivisionError: by zero"),
    ],
)
def test_what_cannot_be_used_is_refused_by_the_name_of_the_reward(result, error, words):
    with pytest.raises(error, match=words) as caught:
        score_all({"given": Given(result)}, ["x", "y"], TWO)
    assert "'given'" in str(caught.value)
    if isinstance(result, Exception):
        assert caught.value.__cause__ is result
    if error is RewardError:
        assert caught.value.exit_code == 4


def test_an_error_that_explains_itself_keeps_its_exit_code():
    with pytest.raises(MissingError) as caught:
        score_all({"given": Given(MissingError("no model"))}, ["x", "y"], TWO)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("missing", "refused"), [(0, False), (1, False), (2, True), (10, True)])
def test_more_than_a_tenth_missing_stops(missing, refused):
    scores = {"given": Scores(torch.zeros(10), torch.arange(10) >= missing)}
    if not refused:
        return refuse_failures(scores)
    with pytest.raises(RewardError, match=f"'given'.*at most 10%.*got {missing * 10}% of 10"):
        refuse_failures(scores)


def test_prompts_are_checked_by_the_rewards_that_ask_for_it():
    scene = registry.lookup("reward", "scene")()
    check_prompts({"jpeg": JpegSize(), "scene": scene}, TWO)
    for reward in (scene, Cached(scene)):
        with pytest.raises(ConfigError, match="prompt 0"):
            check_prompts({"jpeg": JpegSize(), "scene": reward}, prompts("a photo"))


# ---- the memo


def test_equal_samples_of_equal_prompts_are_scored_once():
    inner = Counting()
    reward = Cached(inner, batch_size=2)
    rows = prompts("p", "p", "q", "p")
    first = reward(["aa", "aa", "aa", "bbb"], rows)
    assert first.value.tolist() == [2, 2, 2, 3] and first.parts["double"].tolist() == [4, 4, 4, 6]
    assert inner.calls == [2, 1]  # (aa, p), (aa, q) | (bbb, p)
    assert reward(["bbb", "cccc"], prompts("p", "p")).value.tolist() == [3, 4]
    assert inner.calls == [2, 1, 1]


def test_a_missing_score_is_asked_for_again():
    inner = Counting()
    reward = Cached(inner)
    for _ in range(2):
        scores = reward(["", "a"], TWO)
        assert scores.present.tolist() == [False, True] and scores.value.tolist() == [0, 1]
        assert scores.parts["double"][0].isnan()
    assert inner.calls == [2, 1]


def test_the_least_recently_used_score_is_forgotten():
    inner = Counting()
    reward = Cached(inner, size=2)
    one = prompts("p")
    for text in ("a", "b", "a", "c", "a"):  # c pushes b out, not a
        reward([text], one)
    assert sum(inner.calls) == 3
    reward(["b"], one)
    assert sum(inner.calls) == 4


def test_pictures_are_told_apart_by_content_and_shape_and_gradients_are_kept():
    inner = Counting()
    reward = Cached(inner)
    tall, wide = torch.ones(1, 3, 4, 2), torch.ones(1, 3, 2, 4)
    for images in (tall, wide, tall.clone()):
        assert reward(images, prompts("p")).value.tolist() == [1.0]
    assert inner.calls == [1, 1]
    images = tall.clone().requires_grad_()
    reward(images, prompts("p")).sum().backward()
    assert images.grad.sum().item() == pytest.approx(1)


# ---- jpeg


def test_jpeg_size_counts_kilobytes_and_compress_flips_the_sign():
    torch.manual_seed(0)
    images = torch.stack([torch.zeros(3, 32, 32), torch.rand(3, 32, 32)])
    size = JpegSize()(images, TWO)
    assert 0.3 < size[0] < 1 < size[1] < 5
    torch.testing.assert_close(JpegSize(compress=True)(images, TWO), -size)
    assert JpegSize(quality=50)(images, TWO)[1] < size[1]


# ---- models


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, *save_clip(folder)


def test_clip_is_the_cosine_of_the_models_own_embeddings(clip):
    folder, model, tokenizer, processor = clip
    images = torch.rand(2, 3, 32, 32)
    score = ClipReward(str(folder), device="cpu")(images, TWO)
    pixels = (images - torch.tensor(processor.image_mean)[:, None, None]) / torch.tensor(processor.image_std)[:, None, None]
    with torch.no_grad():
        out = model.eval()(pixel_values=pixels, **tokenizer(TWO.text, padding=True, return_tensors="pt"))
    torch.testing.assert_close(score, out.logits_per_image.diag() / model.logit_scale.exp(), atol=1e-5, rtol=0)
    assert score.dtype == torch.float32 and not score.requires_grad
    logit = ClipReward(str(folder), scale="logit", device="cpu")(images, TWO)
    torch.testing.assert_close(logit, out.logits_per_image.diag(), atol=1e-4, rtol=0)


def test_pickscore_is_the_scaled_cosine_over_26(clip):
    folder, images = str(clip[0]), torch.rand(2, 3, 32, 32)
    logit = ClipReward(folder, scale="logit", device="cpu")(images, TWO)
    torch.testing.assert_close(PickScore(folder, folder, device="cpu")(images, TWO), logit / 26)


def test_the_gradient_of_a_picture_raises_its_score(clip):
    reward, images = ClipReward(str(clip[0]), device="cpu", batch_size=1), torch.full((2, 3, 48, 40), 0.5)
    images.requires_grad_()
    score = reward(images, TWO)
    score.sum().backward()
    assert images.grad.abs().sum((1, 2, 3)).min() > 0
    with torch.no_grad():
        assert (reward(images + 1e-2 * images.grad / images.grad.abs().max(), TWO) > score).all()


def test_chunks_do_not_change_scores(clip):
    images, texts = torch.rand(5, 3, 32, 32), TWO.take([0, 1, 0, 1, 1])
    reward = ClipReward(str(clip[0]), device="cpu", batch_size=2)
    alone = torch.cat([reward(images[[row]], texts.take([row])) for row in range(5)])
    torch.testing.assert_close(reward(images, texts), alone)


def test_every_text_is_encoded_once(clip, monkeypatch):
    encoder = load_encoder(str(clip[0]), str(clip[0]), "cpu")
    monkeypatch.setattr(encoder, "_texts", type(encoder._texts)())
    asked = []
    inner = encoder._tokens
    monkeypatch.setattr(encoder, "_tokens", lambda texts: asked.extend(texts) or inner(texts))
    first = encoder.embed_texts(["a red circle", "a red circle", "a blue square"])
    again = encoder.embed_texts(["a blue square", "a red circle"])
    assert asked == ["a red circle", "a blue square"]
    torch.testing.assert_close(again, first[[2, 0]])


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (32, 32), (20, 25)])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_preprocessing_agrees_with_the_image_processor(shape, kind):
    from transformers import CLIPImageProcessor, SiglipImageProcessor

    square = {"height": 32, "width": 32}
    processor = (
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square) if kind == "clip" else SiglipImageProcessor(size=square)
    )
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(2, 3, 6, 6), size=shape, mode="bicubic").clamp(0, 1)
    pixels = (smooth * 255).round().to(torch.uint8)
    expected = processor(list(pixels), return_tensors="pt").pixel_values
    off = (preprocess(pixels / 255, image_settings(processor)) - expected).abs()
    # the processor rounds to 256 levels, one of which is 0.015 of a standard deviation; a rare pixel is off by two
    assert (off > 2e-2).float().mean() < 1e-3 and off.max() < 4e-2


def test_siglip_is_read_too(tmp_path):
    model, tokenizer = save_siglip(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    score = ClipReward(str(tmp_path), device="cpu")(images, TWO)
    tokens = tokenizer(TWO.text, padding="max_length", max_length=12, return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=images * 2 - 1, **tokens)
    expected = (out.logits_per_image.diag() - model.logit_bias) / model.logit_scale.exp()
    torch.testing.assert_close(score, expected, atol=1e-5, rtol=0)


def test_the_bundled_scorer_is_found_inside_the_package():
    assert model_folder("bundled").endswith("flows/shapes/scorer")
    assert model_folder("openai/clip-vit-base-patch32") == "openai/clip-vit-base-patch32"


def score_with(folder) -> torch.Tensor:
    return ClipReward(str(folder), device="cpu")(torch.rand(2, 3, 32, 32), TWO)


@pytest.mark.parametrize("model", ["/no/such/folder", "./no-such-folder"])
def test_a_missing_folder_is_named(model):
    with pytest.raises(MissingError, match="no.such.folder.*expected a CLIP.*got.*hf download <repo id>"):
        score_with(model)


def test_a_model_that_is_not_cached_is_answered_with_the_download_command(tmp_path):
    code = (
        "import torch; from rewards.image.pickscore import PickScore; from studio.types import Prompts\n"
        "from studio.errors import MissingError\n"
        "try: PickScore()(torch.rand(1, 3, 8, 8), Prompts(['x'], ['x'], [{}]))\n"
        "except MissingError as error: print(error)"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "hf download yuvalkirstain/PickScore_v1" in done.stdout, done.stderr
    assert "hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K" in done.stdout


def test_a_damaged_weight_file_is_named(tmp_path):
    save_clip(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(MissingError, match=r"model\.safetensors: expected a safetensors file, got a damaged one"):
        score_with(tmp_path)


def test_absent_weights_are_not_replaced_by_random_ones(tmp_path):
    save_clip(tmp_path)
    save_file({"logit_scale": torch.tensor(1.0)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MissingError, match="expected all weights of the model"):
        score_with(tmp_path)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["tokenizer.json", "tokenizer_config.json"], "expected a tokenizer of .* tokens, got"),
        (["preprocessor_config.json", "processor_config.json"], "image processor"),
        (["model.safetensors"], "no file named model.safetensors"),
        (["config.json"], "Unrecognized model"),
    ],
    ids=["tokenizer", "image processor", "weights", "config"],
)
def test_an_incomplete_folder_says_what_is_not_there(tmp_path, files, words):
    save_clip(tmp_path)
    for file in files:
        (tmp_path / file).unlink(missing_ok=True)
    with pytest.raises(MissingError, match=words):
        score_with(tmp_path)


def test_a_model_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="got 'bert'"):
        score_with(tmp_path)
