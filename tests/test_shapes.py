"""The bundled world and its trained pipeline: grammar, splits, stock loading and how well it draws."""

import shutil
from importlib.resources import files
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from hypothesis import given
from hypothesis import strategies as st

from flows.denoise import RowNoise
from flows.load import Model, build_policy, load_backbone, locate
from flows.sampler import Sampler
from flows.schedule import static_grid
from flows.shapes import world
from rewards.image.scene import SceneReward
from studio.errors import MissingError
from studio.types import Prompts

FOLDER = Path(str(files("flows.shapes"))) / "pipeline"
GROUPS = st.builds(
    world.Group, st.sampled_from(list(world.COUNTS)), st.sampled_from(list(world.COLORS)), st.sampled_from(world.SHAPES)
)
SCENES = st.one_of(
    st.builds(lambda group: world.Scene((group,)), GROUPS),
    st.builds(world.Scene, st.tuples(GROUPS, GROUPS), st.sampled_from([None, *world.RELATIONS])),
)


@pytest.fixture(scope="module")
def policy():
    return build_policy(Model(device="cpu", text_length=1), Sampler(), seed=0)


@given(SCENES)
def test_a_caption_describes_its_scene(scene):
    assert world.parse(world.caption(scene)) == scene


@given(st.integers(0, 10_000))
def test_sampled_scenes_keep_the_rules(seed):
    scene = world.sample_scene(np.random.default_rng(seed))
    assert 1 <= sum(group.count for group in scene.groups) <= world.MAX_OBJECTS
    assert scene.relation is None or len(scene.groups) == 2
    assert len({(group.color, group.shape) for group in scene.groups}) == len(scene.groups)
    assert set(world.caption(scene).split()) <= set(world.words())


@pytest.mark.parametrize("text", ["", "a red circles", "two red circle", "four red circles", "a red circle under a blue square"])
def test_a_sentence_outside_the_grammar_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        world.parse(text)


def test_the_held_out_split_is_disjoint_from_training():
    train = {world.caption(scene) for scene in islice(world.scenes(0), 3000)}
    test = {world.caption(scene) for scene in islice(world.scenes(0, test=True), 500)}
    assert not train & test
    assert all(map(world.held_out, test)) and not any(map(world.held_out, train))
    rng = np.random.default_rng(1)
    drawn = [world.held_out(world.caption(world.sample_scene(rng))) for _ in range(2000)]
    assert np.mean(drawn) == pytest.approx(1 / world.HELD_OUT_SHARE, abs=0.05)


def test_scenes_repeat_for_a_seed():
    assert list(islice(world.scenes(7), 20)) == list(islice(world.scenes(7), 20)) != list(islice(world.scenes(8), 20))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_stock_pipeline_draws_the_same_pictures(policy, guidance):
    stock = StableDiffusion3Pipeline.from_pretrained(FOLDER)
    stock.set_progress_bar_config(disable=True)
    texts, seeds = ["two red circles left of a blue square", "a cyan triangle"], [3, 4]
    policy.sampler = Sampler(guidance=guidance)
    expected = stock(
        texts,
        latents=RowNoise(seeds, (8, 8, 8))(),
        num_inference_steps=8,
        guidance_scale=guidance,
        max_sequence_length=1,
        output_type="pt",
    ).images
    torch.testing.assert_close(policy.images(texts, seeds), expected, atol=1e-4, rtol=0)


def test_the_base_model_has_something_to_learn(policy):
    policy.sampler = Sampler()
    texts = [world.caption(scene) for scene in islice(world.scenes(11, test=True), 64)]
    images = policy.images(texts, seeds=range(64))
    assert images.shape == (64, 3, world.SIZE, world.SIZE) and images.min() >= 0 and images.max() <= 1
    strict = SceneReward()(images, Prompts(texts, texts, [{}] * 64)).parts["scene_strict"].mean().item()
    assert 0.25 <= strict <= 0.65


def test_the_grid_is_the_pipelines_own(policy):
    torch.testing.assert_close(policy.grid(8), static_grid(8), atol=2e-6, rtol=0)


def test_a_bundled_name_is_a_folder_and_a_hub_id_stays():
    assert Path(locate("shapes")) == FOLDER
    assert locate("stabilityai/stable-diffusion-3.5-medium") == "stabilityai/stable-diffusion-3.5-medium"
    assert locate(str(FOLDER)) == str(FOLDER)


def test_a_missing_folder_says_what_to_give(tmp_path):
    with pytest.raises(MissingError, match="model_index.json") as caught:
        load_backbone(Model(id=str(tmp_path / "nothing"), device="cpu"))
    assert caught.value.exit_code == 3


def test_a_model_that_was_never_fetched_says_how_to_fetch_it():
    with pytest.raises(MissingError, match="hf download nobody/no-such-model") as caught:
        load_backbone(Model(id="nobody/no-such-model", device="cpu"))
    assert caught.value.exit_code == 3


def test_a_truncated_file_is_named_as_damage(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "pipeline")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(MissingError, match="damaged") as caught:
        load_backbone(Model(id=str(folder), device="cpu"))
    assert caught.value.exit_code == 3
