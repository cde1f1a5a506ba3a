"""Objects, colors and places: the graded formula by hand, and tiny detectors from end to end."""

from __future__ import annotations

import pytest
import torch
from zoo import prompts, save_clip, save_yolos, smooth

from rewards.image import geneval
from rewards.image.colors import COLORS, GRAY, crop, name_colors
from rewards.image.detector import Found, box_of, load_detector
from rewards.image.geneval import Geneval, accurate, by_class, graded, relations
from rewards.score import check_prompts
from studio.errors import ConfigError, MissingError


def thing(kind="dog", x=0.0, y=0.0, size=10.0, confidence=0.95, mask=None) -> Found:
    return Found(kind, (x, y, x + size, y + size), confidence, mask)


def all_red(kind, things):
    return ["red"] * len(things)


def dogs(n: int, **need) -> list[dict]:
    return [{"class": "dog", "count": n, **need}]


@pytest.mark.parametrize(
    ("include", "found", "value", "strict"),
    [
        (dogs(2), 2, 1.0, 1),
        (dogs(4), 3, 0.75, 0),  # 1 - 1/4
        (dogs(2), 3, 0.5, 0),  # 1 - 1/2
        (dogs(1), 5, 0.0, 0),  # 1 - 4 is cut at 0
        (dogs(2, color="red"), 2, 1.0, 1),
        (dogs(2, color="blue"), 2, 0.5, 0),  # count 1, color 1 - 2/2
        (dogs(2, color="red"), 1, 0.25, 0),  # count 1/2, and 0 in the place of the color
        (dogs(2, color="red", position=["left of", 0]), 1, 0.25, 0),  # one 0 for both
    ],
)
def test_count_and_color_by_hand(include, found, value, strict):
    objects = {"dog": [thing() for _ in range(found)]}
    assert graded(include, objects, all_red) == (pytest.approx(value), strict)


def test_position_by_hand():
    include = [*dogs(1), {"class": "cat", "count": 1, "position": ["right of", 0]}]
    right = {"dog": [thing()], "cat": [thing("cat", x=40)]}
    left = {"dog": [thing(x=40)], "cat": [thing("cat")]}
    two_dogs = {"dog": [thing(), thing(y=30)], "cat": [thing("cat", x=40)]}
    assert graded(include, right, all_red) == (1.0, 1)
    assert graded(include, left, all_red) == (pytest.approx(2 / 3), 0)
    # dogs 1 - 1/1 = 0, cat 1, and no position against a group whose count is wrong
    assert graded(include, two_dogs, all_red) == (pytest.approx(1 / 3), 0)


def test_relations_by_hand():
    # centers 20 apart, sizes 10 + 10: (20 - 0.1·20) / 20 = 0.9
    assert relations(thing(x=20), thing()) == {"right of"} and relations(thing(), thing(x=20)) == {"left of"}
    assert relations(thing(y=20), thing()) == {"below"} and relations(thing(), thing(y=20)) == {"above"}
    # 3 apart: (3 - 2) / 3 = 0.33
    assert relations(thing(x=3), thing()) == set() and relations(thing(), thing()) == set()
    # diagonal: (20 - 2) / 28.3 = 0.64 on both axes
    assert relations(thing(x=20, y=20), thing()) == {"right of", "below"}


def test_confidence_and_the_limit_of_sixteen():
    found = [thing(confidence=0.31 + 0.02 * n) for n in range(20)] + [thing("cat", confidence=0.3)]
    kept = by_class(found, 0.3)
    assert len(kept["dog"]) == 16 and "cat" not in kept
    assert min(one.confidence for one in kept["dog"]) == pytest.approx(0.31 + 0.02 * 4)
    assert len(by_class(found, 0.6)["dog"]) == 5


def test_accuracy_allows_more_and_obeys_exclude():
    info = {"include": dogs(2), "exclude": [{"class": "dog", "count": 4}]}
    verdicts = [accurate(info, {"dog": [thing()] * n}, all_red) for n in range(1, 5)]
    assert verdicts == [0, 1, 1, 0]
    assert accurate({"include": dogs(1, color="blue")}, {"dog": [thing()]}, all_red) == 0


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({}, "no objects"),
        ({"include": [{"class": "dog"}]}, "lacks class or count"),
        ({"include": dogs(1, color="mauve")}, "mauve"),
        ({"include": dogs(1, position=["near", 0])}, "near"),
        ({"include": dogs(1, position=["above", 1])}, "index of an object"),
    ],
    ids=["no metadata", "no count", "unknown color", "unknown relation", "no such object"],
)
def test_metadata_is_checked_before_sampling(info, words):
    with pytest.raises(ConfigError, match=words):
        check_prompts({"geneval": Geneval()}, prompts("a dog", **info))


# ---- with models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("geneval")
    save_yolos(folder / "yolos")
    save_clip(folder / "clip")
    return folder


def test_a_detector_of_boxes_from_end_to_end(models):
    images = smooth(3, 48, 48)
    reward = Geneval(str(models / "yolos"), str(models / "clip"), device="cpu", batch_size=2)
    found = load_detector(str(models / "yolos"), "cpu")(images)
    assert any(found), "the test wants a detector that sees something"
    for page in found:
        assert all(one.kind in ("dog", "cat") and 0.05 < one.confidence <= 1 for one in page)
    rows = prompts("a red dog", "a red dog", "a red dog", include=dogs(1, color="red"), tag="color_attr")
    scores = reward(images, rows)
    from rewards.image.clip import load_encoder

    encoder = load_encoder(str(models / "clip"), str(models / "clip"), "cpu")
    for row, page in enumerate(found):
        objects = by_class(page, 0.3)
        colors = name_colors(encoder, images[row], "dog", objects.get("dog", []))
        n = len(objects.get("dog", []))
        by_hand = (max(0, 1 - abs(1 - n)) + (float(colors == ["red"]) if n == 1 else 0)) / 2
        assert scores.value[row].item() == pytest.approx(by_hand)
        assert scores.parts["geneval_strict"][row] == float(by_hand == 1)


class Given:
    """A detector that finds these in every picture."""

    kinds = frozenset({"dog", "mouse"})

    def __init__(self, found):
        self.found = found

    def __call__(self, images):
        return [self.found for _ in images]


def test_names_of_genevals_own_are_understood_and_unknown_ones_refused(models, monkeypatch):
    monkeypatch.setattr(geneval, "load_detector", lambda *given: Given([thing("mouse")]))
    reward = Geneval("any", str(models / "clip"), device="cpu")
    mouse = prompts("a computer mouse", include=[{"class": "computer mouse", "count": 1}])
    assert reward(smooth(1, 8, 8), mouse).value.item() == 1
    with pytest.raises(ConfigError, match="the class 'unicorn', which the detector does not know"):
        reward(smooth(1, 8, 8), prompts("a unicorn", include=[{"class": "unicorn", "count": 1}]))


def test_counting_asks_for_more_confidence(models, monkeypatch):
    unsure = Given([thing(confidence=0.5)])
    monkeypatch.setattr(geneval, "load_detector", lambda *given: unsure)
    reward = Geneval("any", str(models / "clip"), device="cpu")
    images = smooth(1, 48, 48)
    assert reward(images, prompts("a dog", include=dogs(1), tag="single_object")).value.item() == 1
    assert reward(images, prompts("a dog", include=dogs(1), tag="counting")).value.item() == 0


def test_a_detector_of_masks_from_end_to_end(tmp_path):
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor, SwinConfig

    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, out_features=stages)
    config = Mask2FormerConfig(
        backbone_config=swin,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        num_attention_heads=2,
        dim_feedforward=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_queries=4,
        id2label={0: "dog", 1: "cat"},
        label2id={"dog": 0, "cat": 1},
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    found = load_detector(str(tmp_path), "cpu")(smooth(2, 48, 40))
    assert any(found), "the test wants a detector that sees something"
    for one in (one for page in found for one in page):
        assert one.mask.shape == (48, 40) and one.mask.dtype == torch.bool
        left, top, right, bottom = map(int, one.box)
        assert one.mask[top:bottom, left:right].sum() == one.mask.sum()


def test_a_picture_in_which_nothing_is_found_has_no_objects(tmp_path):
    """transformers then answers one map [H, W] of -1 where it otherwise has a mask per object."""
    from types import SimpleNamespace

    from transformers import Mask2FormerImageProcessor

    from rewards.image.detector import _masks

    nothing = torch.tensor([[[-9.0, -9.0, 9.0]] * 4])  # four queries, all sure of "no object"
    output = SimpleNamespace(class_queries_logits=nothing, masks_queries_logits=torch.ones(1, 4, 8, 8))
    assert _masks(Mask2FormerImageProcessor(), output, [(6, 6)], {0: "dog", 1: "cat"}) == [[]]


def test_box_and_gray_crop_by_hand():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 3] = mask[4, 3:6] = True
    assert box_of(mask) == (3, 2, 6, 5)
    shown = crop(torch.ones(3, 8, 8), Found("dog", box_of(mask), 1.0, mask))
    assert shown.shape == (3, 3, 3)
    assert shown[0].tolist() == [[1, pytest.approx(GRAY), pytest.approx(GRAY)]] * 2 + [[1, 1, 1]]
    assert crop(torch.ones(3, 8, 8), Found("dog", (7.9, 7.9, 7.95, 7.95), 1.0)).shape == (3, 1, 1)


def test_the_color_is_the_nearest_mean_of_three_templates():
    class Encoder:
        """Knows one axis per color; a picture points to the color that stands in its red channel, in tenths."""

        def embed_texts(self, texts):
            assert len(texts) == 30
            rows = torch.zeros(30, 10)
            for row, text in enumerate(texts):
                rows[row, next(at for at, color in enumerate(COLORS) if f" {color}" in text)] = 1
            return rows

        def embed_images(self, images):
            return torch.eye(10)[(images[:, 0].mean((1, 2)) * 10).round().long()]

    picture = torch.full((3, 8, 8), 0.4)
    picture[:, :, 4:] = 0.9
    assert name_colors(Encoder(), picture, "dog", [thing(size=4), thing(x=4, size=4)]) == ["blue", "white"]
    assert name_colors(Encoder(), picture, "dog", []) == []


def test_an_absent_detector_is_named(tmp_path):
    with pytest.raises(MissingError, match="expected an object detector of transformers"):
        load_detector(str(tmp_path / "none"), "cpu")
