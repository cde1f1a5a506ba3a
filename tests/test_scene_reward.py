"""The scene judge agrees with the world that draws, is not fooled by other captions, and survives a decoder's blur."""

import time
from functools import cache

import numpy as np
import pytest
import torch
from scipy import ndimage

from flows.shapes import world
from rewards.image.scene import SceneReward, Thing, find_things, relation_holds, required_scene
from studio.errors import ConfigError, ShapeError
from studio.types import Prompts

RED, BLUE = world.Group(1, "red", "circle"), world.Group(1, "blue", "square")


@cache
def drawn(count: int = 2000) -> tuple[torch.Tensor, Prompts]:
    rng = np.random.default_rng(7)
    scenes = [world.sample_scene(rng) for _ in range(count)]
    texts = [world.caption(scene) for scene in scenes]
    return torch.from_numpy(np.stack([world.draw(scene, rng) for scene in scenes])), prompts(*texts)


def some(count: int = 500) -> tuple[torch.Tensor, Prompts]:
    images, texts = drawn()
    return images[:count], texts.take(range(count))


def prompts(*texts: str, **info) -> Prompts:
    return Prompts(list(texts), list(texts), [info] * len(texts))


def picture(*objects: tuple[str, str, float, float], radius: float = 4.3) -> torch.Tensor:
    """A picture [1, 3, 32, 32] with these (color, shape, x, y)."""
    image = np.full((3, world.SIZE, world.SIZE), 0.9, dtype=np.float32)
    for color, shape, x, y in objects:
        cover = world.coverage(shape, x, y, radius)
        image = image * (1 - cover) + np.asarray(world.COLORS[color], dtype=np.float32)[:, None, None] / 255 * cover
    return torch.from_numpy(image)[None]


def test_drawn_pictures_are_right_in_every_respect():
    images, texts = drawn()
    scores = SceneReward()(images, texts)
    assert scores.present is None
    assert scores.value.dtype == torch.float32 and scores.value.shape == (2000,)
    assert (scores.value == 1).float().mean() >= 0.995
    assert scores.parts["scene_strict"].mean() >= 0.995


def test_pictures_of_another_caption_are_wrong():
    images, texts = some()
    other = texts.take([(index + 1) % len(texts) for index in range(len(texts))])
    scores = SceneReward()(images, other)
    assert scores.parts["scene_strict"].mean() < 0.05
    assert scores.value.mean() < 0.3


@pytest.mark.parametrize(("blur", "noise", "least"), [(0.5, 0.03, 0.97), (0.8, 0.03, 0.97), (0.5, 0.06, 0.97)])
def test_smeared_and_noisy_pictures_are_still_read(blur, noise, least):
    images, texts = some()
    rng = np.random.default_rng(1)
    worn = ndimage.gaussian_filter(images.numpy(), (0, 0, blur, blur)) + noise * rng.standard_normal(images.shape)
    scores = SceneReward()(torch.from_numpy(worn.clip(0, 1)).float(), texts)
    assert scores.parts["scene_strict"].mean() >= least


def test_colors_off_by_a_tenth_and_faint_blotches_do_not_matter():
    images, texts = some()
    rng = np.random.default_rng(2)
    tint = rng.uniform(-0.1, 0.1, (len(images), 3, 1, 1))
    blotch = ndimage.gaussian_filter(rng.standard_normal(images.shape), (0, 0, 2, 2))
    worn = (images.numpy() + tint + 0.04 * blotch / blotch.std()).clip(0, 1)
    assert SceneReward()(torch.from_numpy(worn).float(), texts).parts["scene_strict"].mean() >= 0.97


def test_larger_pictures_are_judged_at_the_size_of_the_world():
    images, texts = some(100)
    large = torch.nn.functional.interpolate(images, scale_factor=4, mode="bilinear")
    assert SceneReward()(large, texts).parts["scene_strict"].mean() >= 0.97


def test_what_is_found_is_where_it_was_drawn():
    (things,) = find_things(picture(("red", "circle", 8, 9), ("blue", "triangle", 22, 20)).numpy())
    found = {(thing.color, thing.shape): (thing.x, thing.y) for thing in things}
    assert found["red", "circle"] == pytest.approx((8, 9), abs=0.1)
    assert found["blue", "triangle"] == pytest.approx((22, 20), abs=0.3)


# count and color terms per group, the position term, and their mean
GRADES = [
    # two wanted, one there: count 1 - 1/2; the count is wrong, so color 0
    ("two red circles", [("red", "circle", 8, 8)], 0.25, 0),
    # the count is right, one of two has the color: 1 and 1/2
    ("two red circles", [("red", "circle", 8, 8), ("blue", "circle", 22, 8)], 0.75, 0),
    # one wanted, two there: 1 - 1/1 = 0
    ("a red circle", [("red", "circle", 8, 8), ("red", "circle", 22, 8)], 0.0, 0),
    ("a red circle", [("red", "circle", 8, 8)], 1.0, 1),
    ("a red circle", [], 0.0, 0),
    # a surplus square is not asked about, but the picture is not exact
    ("a red circle", [("red", "circle", 8, 8), ("blue", "square", 22, 8)], 1.0, 0),
    # circles are counted together: 2 wanted, 2 there; both colors right
    ("a red circle and a blue circle", [("red", "circle", 8, 8), ("blue", "circle", 22, 8)], 1.0, 1),
    # 1, 1, 1, 1 and position 0
    ("a red circle right of a blue square", [("red", "circle", 8, 8), ("blue", "square", 22, 8)], 0.8, 0),
    # circle 1, 1; no square: 0, 0; a missing group stands nowhere: 0
    ("a red circle left of a blue square", [("red", "circle", 8, 8)], 0.4, 0),
]


@pytest.mark.parametrize(("text", "objects", "value", "strict"), GRADES)
def test_grades_by_hand(text, objects, value, strict):
    scores = SceneReward()(picture(*objects), prompts(text))
    assert scores.value.item() == pytest.approx(value, abs=1e-6)
    assert scores.parts["scene_strict"].item() == strict


def test_surplus_objects_cost_a_term_on_request():
    # terms 1, 1 and 1 - 1/1 for one surplus object where one was asked for
    image = picture(("red", "circle", 8, 8), ("blue", "square", 22, 8))
    assert SceneReward(extras=True)(image, prompts("a red circle")).value.item() == pytest.approx(2 / 3, abs=1e-6)


def test_something_outside_the_palette_is_a_surplus_object():
    image = picture(("red", "circle", 8, 8))
    image[:, :, 20:28, 20:28] = 0.0
    assert [(thing.color, thing.shape) for thing in find_things(image.numpy())[0]][-1] == ("unknown", "square")
    scores = SceneReward()(image, prompts("a red circle"))
    assert (scores.value.item(), scores.parts["scene_strict"].item()) == (1.0, 0.0)


def test_a_picture_in_one_color_shows_nothing():
    image = torch.zeros(1, 3, 32, 32)
    image[:, 0] = 0.86
    assert [thing.shape for thing in find_things(image.numpy())[0]] == ["unknown"]


@pytest.mark.parametrize(
    ("relation", "first", "second", "holds"),
    [
        ("left of", [(8, 8)], [(14, 25)], True),  # beyond the line, however far up
        ("left of", [(8, 8)], [(10, 25)], False),  # 2 pixels are not a side
        ("right of", [(8, 8)], [(14, 25)], False),
        ("above", [(8, 8), (20, 9)], [(14, 25)], True),
        ("above", [(8, 8), (20, 28)], [(14, 25)], False),  # one straggler below
        ("below", [(8, 25)], [(8, 8)], True),
        ("below", [], [(8, 8)], False),
    ],
)
def test_relation_is_a_line_between_the_groups(relation, first, second, holds):
    things = [Thing("red", "circle", *place) for place in first] + [Thing("blue", "square", *place) for place in second]
    assert relation_holds(world.Scene((RED, BLUE), relation), things, gap=3.0) is holds


def test_the_scene_in_the_info_goes_before_the_text():
    scene = world.Scene((RED, BLUE), "above")
    for given in (scene, scene.as_info()):
        assert required_scene(prompts("please draw it nicely", scene=given), 0) == scene


@pytest.mark.parametrize("info", [{}, {"scene": {"groups": [{"count": 1, "color": "pink", "shape": "circle"}]}}, {"scene": 3}])
def test_a_prompt_without_a_scene_is_refused_with_its_number_and_text(info):
    texts = Prompts(["a red circle", "a photo of a cat"], ["0", "1"], [{}, info])
    with pytest.raises(ConfigError, match=r"prompt 1 \('a photo of a cat'\)") as error:
        SceneReward().check(texts)
    assert "info['scene']" in str(error.value)


def test_captions_of_the_world_pass_the_check():
    SceneReward().check(drawn()[1])


def test_a_picture_with_nan_is_missing_not_zero():
    image = picture(("red", "circle", 8, 8)).repeat(2, 1, 1, 1)
    image[1, 0, 0, 0] = torch.nan
    scores = SceneReward()(image, prompts("a red circle", "a red circle"))
    assert scores.present.tolist() == [True, False]
    assert scores.value[0] == 1


def test_pictures_without_colors_are_refused():
    with pytest.raises(ShapeError, match=r"\[2, 1, 32, 32\]"):
        SceneReward()(torch.zeros(2, 1, 32, 32), prompts("a red circle", "a red circle"))


def test_a_batch_of_128_takes_less_than_a_tenth_of_a_second():
    batch, few = some(128)
    reward = SceneReward()
    reward(batch, few)

    def seconds() -> float:
        started = time.process_time()
        reward(batch, few)
        return time.process_time() - started

    assert min(seconds() for _ in range(3)) < 0.1
