"""Rewards on CLIP and SigLIP embeddings: published forms, comparisons within a prompt, references, the aesthetic head."""

from __future__ import annotations

import pickle
import shlex
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from zoo import TWO, prompts, raises_its_score, save_clip, save_head, save_siglip, smooth

from rewards.cached import Cached
from rewards.candidates import by_key
from rewards.image.aesthetic import Aesthetic
from rewards.image.clip import ClipReward, load_encoder
from rewards.image.clip_score import ClipScore, SiglipScore
from rewards.image.pickscore import PickScore, PickScoreRank
from rewards.image.similarity import ImageSimilarity
from rewards.score import check_prompts
from rewards.weights import read_weights, split_revision
from studio.config import Weighted
from studio.errors import ConfigError, MissingError, ShapeError
from studio.scoring import Scorer
from studio.types import Prompts, Scores


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return str(folder)


def test_clip_score_is_the_logit_over_its_scale(clip):
    images = torch.rand(2, 3, 32, 32)
    logit = ClipReward(clip, scale="logit", device="cpu")(images, TWO)
    scale = load_encoder(clip, clip, "cpu").scale
    torch.testing.assert_close(ClipScore(clip, device="cpu")(images, TWO), logit / scale, atol=1e-6, rtol=1e-5)


def test_siglip_as_probability_is_the_models_own(tmp_path):
    model, tokenizer = save_siglip(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    tokens = tokenizer(TWO.text, padding="max_length", max_length=12, return_tensors="pt")
    with torch.no_grad():
        expected = model(pixel_values=images * 2 - 1, **tokens).logits_per_image.diag().sigmoid()
    score = SiglipScore(str(tmp_path), scale="probability", device="cpu")
    torch.testing.assert_close(score(images, TWO), expected, atol=1e-6, rtol=1e-4)
    raises_its_score(SiglipScore(str(tmp_path), device="cpu"))


@pytest.mark.parametrize("output", ["an object of transformers 5", "a tensor of transformers 4"])
def test_both_return_types_of_get_image_features_are_read(clip, monkeypatch, output):
    """transformers 5 returns BaseModelOutputWithPooling; the projected embedding is its pooler_output."""
    encoder = load_encoder(clip, clip, "cpu")
    images = torch.rand(2, 3, 32, 32)
    before = encoder.embed_images(images)
    inner = encoder.model.get_image_features
    assert not isinstance(inner(pixel_values=torch.zeros(1, 3, 32, 32)), torch.Tensor)
    if output.startswith("a tensor"):
        monkeypatch.setattr(encoder.model, "get_image_features", lambda **given: inner(**given).pooler_output)
    torch.testing.assert_close(encoder.embed_images(images), before)


# ---- pictures of one prompt compared


def test_rank_by_hand():
    # group 0 has s = ln 1, ln 3: probabilities 1/4 and 3/4; group 1 has one picture; the fourth picture has no score
    group, present = torch.tensor([0, 1, 0, 0]), torch.tensor([True, True, True, False])
    scores = Scores(torch.tensor([1.0, 7.0, 3.0, 99.0]).log(), present)
    picked = PickScoreRank().compare(scores, group)
    torch.testing.assert_close(picked.value, torch.tensor([0.25, 1.0, 0.75, 0.0]))
    assert picked.present is present
    ranks = PickScoreRank("rank").compare(Scores(torch.tensor([2.0, 5.0, 1.0, 2.0])), torch.zeros(4, dtype=torch.int64))
    assert ranks.value.tolist() == [0.25, 0.75, 0.0, 0.25]  # below: 1 of 4, 3 of 4, none, 1 of 4


def test_probabilities_are_the_softmax_of_the_undivided_score(clip):
    rows, images = TWO.take([0, 1, 0]), torch.rand(3, 3, 32, 32)
    s = PickScore(clip, clip, divisor=1.0, device="cpu")(images, rows)
    picked = PickScoreRank(model=clip, processor=clip, device="cpu")(images, rows).value
    torch.testing.assert_close(picked[[0, 2]], s[[0, 2]].softmax(0))
    assert picked[1] == 1


def test_a_group_that_was_scored_in_parts_is_compared_as_a_whole(clip):
    """The loop scores parts in the background, with a memory; the comparison waits for all of them."""
    reward = PickScoreRank(model=clip, processor=clip, device="cpu")
    rows, images = TWO.take([0, 0, 1, 0]), torch.rand(4, 3, 32, 32)
    scorer = Scorer({"pickscore_rank": Weighted("pickscore_rank", 1.0, reward)})
    assert isinstance(scorer.rewards["pickscore_rank"], Cached)
    try:
        for cut in ([0], [1, 2], [3]):
            scorer.submit(rows.take(cut), images[cut])
        scores = scorer.compared(scorer.collect(), by_key(rows))["pickscore_rank"]
    finally:
        scorer.close()
    torch.testing.assert_close(scores.value, reward(images, rows).value)
    assert scores.value[[0, 1, 3]].sum() == pytest.approx(1)


def test_the_gradient_of_a_probability_favors_one_picture_over_the_other(clip):
    images = torch.rand(2, 3, 32, 32).requires_grad_()
    reward = PickScoreRank(model=clip, processor=clip, device="cpu")
    rows = TWO.take([0, 0])
    before = reward(images, rows).value
    before[0].backward()
    assert images.grad.abs().sum((1, 2, 3)).min() > 0
    assert reward((images + 0.02 * images.grad.sign()).detach(), rows).value[0] > before[0]
    assert not reward.differentiable, "parts of a batch are differentiated before they can be compared"


# ---- similarity


def test_a_picture_is_most_like_itself(clip, tmp_path):
    images = smooth(2, 32, 32)
    png = (images[0] * 255).round().to(torch.uint8)
    Image.fromarray(png.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    reward = ImageSimilarity(clip, device="cpu")
    rows = prompts("x", "x", reference=str(tmp_path / "a.png"))
    itself, other = reward(torch.stack([png / 255, images[1]]), rows)
    assert itself == pytest.approx(1, abs=1e-5) and other < 0.9999
    raises_its_score(reward, rows)
    each = [{"reference": images[1]}, {"reference": images[0]}]
    crossed = reward(images, Prompts(["x", "y"], ["x", "y"], each))  # every picture with the other
    torch.testing.assert_close(crossed, other.detach().expand(2), atol=1e-3, rtol=0)
    own = reward(images, Prompts(["x", "y"], ["x", "y"], each[::-1]))
    torch.testing.assert_close(own, torch.ones(2), atol=1e-5, rtol=0)
    tensor = reward(images, prompts("x", "x", reference=png / 255))
    torch.testing.assert_close(tensor, reward(images, rows), atol=1e-6, rtol=0)


@pytest.mark.parametrize("info", [{}, {"reference": "/no/such.png"}, {"reference": 5}], ids=["none", "no file", "a number"])
def test_a_prompt_without_a_reference_is_refused_before_sampling(info):
    with pytest.raises(ConfigError, match=r"prompt 'x'.*info\['reference'\]"):
        check_prompts({"image_similarity": ImageSimilarity()}, prompts("x", **info))


# ---- aesthetic


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    folder = tmp_path_factory.mktemp("head")
    return folder, save_head(folder)


def aesthetic(clip, folder, file="head.pth") -> Aesthetic:
    return Aesthetic(clip, str(folder), file, device="cpu")


def test_aesthetic_is_the_head_of_the_unit_embedding(clip, head):
    folder, network = head
    images = torch.rand(3, 3, 32, 32)
    e = load_encoder(clip, clip, "cpu").embed_images(images)
    torch.testing.assert_close(e.norm(dim=1), torch.ones(3))
    with torch.no_grad():
        expected = network(e)[:, 0]
    torch.testing.assert_close(aesthetic(clip, folder)(images, prompts("a", "b", "c")), expected)


def test_the_head_has_the_published_sizes_and_no_activation(head):
    _, network = head
    assert [tuple(network[at].weight.shape) for at in (0, 2, 4, 6, 7)] == [(1024, 16), (128, 1024), (64, 128), (16, 64), (1, 16)]
    x, y = torch.randn(2, 1, 16)
    with torch.no_grad():  # affine: f(x) + f(y) = f(x + y) + f(0)
        torch.testing.assert_close(network(x) + network(y), network(x + y) + network(0 * x), atol=1e-6, rtol=0)


def test_aesthetic_gradient(clip, head):
    raises_its_score(aesthetic(clip, head[0]))


def test_a_pickle_is_never_opened_and_the_way_out_works(clip, head, tmp_path):
    """Not even one of tensors only: the message has the command that converts a file which the user trusts."""

    class Danger:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "head.pth").write_bytes(pickle.dumps({"layers.0.weight": Danger()}))
    with pytest.raises(MissingError, match="expected head.safetensors beside it, got a pickle only"):
        aesthetic(clip, tmp_path)(torch.rand(1, 3, 32, 32), prompts("x"))
    assert not (tmp_path / "ran").exists()

    image = torch.rand(1, 3, 32, 32)
    torch.save({"state_dict": load_file(head[0] / "head.safetensors")}, tmp_path / "head.pth")
    with pytest.raises(MissingError) as refused:
        aesthetic(clip, tmp_path)(image, prompts("x"))
    _, _, command = str(refused.value).partition("convert it once: ")
    code, source, target = shlex.split(command)[2:]
    subprocess.run([sys.executable, "-c", code, source, target], check=True)
    assert torch.equal(aesthetic(clip, tmp_path)(image, prompts("x")), aesthetic(clip, head[0])(image, prompts("x")))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"layers.0.weight": torch.zeros(1024, 16)}, "Missing key"),
        ({"layers.9.weight": torch.zeros(1)}, "Unexpected key|Missing key"),
    ],
    ids=["incomplete", "foreign"],
)
def test_absent_or_foreign_weights_are_not_filled_with_random_ones(clip, tmp_path, weights, words):
    save_file(weights, tmp_path / "head.safetensors")
    with pytest.raises(MissingError, match=words):
        aesthetic(clip, tmp_path, "head.safetensors")(torch.rand(1, 3, 32, 32), prompts("x"))


def test_a_missing_file_is_named(clip, tmp_path):
    with pytest.raises(MissingError, match="expected a file head.pth.*hf download"):
        aesthetic(clip, tmp_path)(torch.rand(1, 3, 32, 32), prompts("x"))
    (tmp_path / "broken.safetensors").write_bytes(b"\x01" * 40)
    with pytest.raises(MissingError, match=r"broken\.safetensors.*damaged"):
        read_weights(tmp_path / "broken.safetensors")


def test_a_model_may_name_its_revision(tmp_path):
    assert split_revision("owner/name@v1.5") == ("owner/name", "v1.5")
    assert split_revision("owner/name") == ("owner/name", None)
    (tmp_path / "at@home").mkdir()
    assert split_revision(str(tmp_path / "at@home")) == (str(tmp_path / "at@home"), None)


def test_pictures_of_another_shape_are_refused(clip, head):
    for reward in (aesthetic(clip, head[0]), ClipScore(clip, device="cpu")):
        with pytest.raises(ShapeError, match=r"expected \[B, 3, H, W\]"):
            reward(torch.rand(3, 32, 32), prompts("x"))
