"""HPSv2, ImageReward and HPSv3 with tiny random weights in the published formats."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from zoo import TWO, prompts, raises_its_score, save_hps, save_hpsv3, save_image_reward, smooth

from rewards.image.hps import HPSv2, load_hps, to_square
from rewards.image.hpsv3 import TEMPLATE, HPSv3, chat, load_hpsv3
from rewards.image.image_reward import ImageReward, load_image_reward
from rewards.pictures import as_pil
from rewards.score import check_prompts
from rewards.weights import fill
from studio.errors import ConfigError, MissingError

# ---- HPSv2


@pytest.fixture(scope="module")
def hps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hps")
    return folder, save_hps(folder)


def hpsv2(folder, **options) -> HPSv2:
    return HPSv2(model=str(folder), architecture=str(folder / "tiny.json"), device="cpu", **options)


def test_hpsv2_is_the_cosine_after_the_published_preprocessing(hps):
    """open_clip's own transform of 8-bit pictures with the longest side scaled and padded, against our tensor operations."""
    from open_clip import SimpleTokenizer, image_transform
    from torchvision.transforms.functional import to_pil_image

    folder, network = hps
    images = (smooth(2, 48, 64) * 255).round() / 255
    transform = image_transform(32, is_train=False, resize_mode="longest", fill_color=0, interpolation="bicubic")
    pixels = torch.stack([transform(to_pil_image(image)) for image in images])
    with torch.no_grad():
        image, text, scale = network(pixels, SimpleTokenizer()(TWO.text))
    torch.testing.assert_close(hpsv2(folder)(images, TWO), (image * text).sum(-1), atol=2e-3, rtol=0)
    assert scale > 10, "the score is the cosine, without the scale"


def test_the_longest_side_fits_and_the_rest_is_black():
    wide = to_square(torch.ones(1, 3, 16, 64), 32, "pad")
    assert wide.shape == (1, 3, 32, 32)
    assert (wide[..., 12:20, :] == 1).all()  # 16·32/64 = 8 rows in the middle of 32
    assert wide[..., :12, :].sum() == 0 and wide[..., 20:, :].sum() == 0
    tall = to_square(torch.ones(1, 3, 64, 16), 32, "pad")
    assert torch.equal(tall, wide.transpose(2, 3))
    assert (to_square(torch.ones(1, 3, 64, 16), 32, "crop") > 0.999).all()


def test_versions_are_different_rewards(hps):
    images = smooth(2, 32, 32)
    assert not torch.allclose(hpsv2(hps[0])(images, TWO), hpsv2(hps[0], version="v2")(images, TWO), atol=1e-3)
    assert HPSv2().model_id == "xswu/HPSv2/HPS_v2.1_compressed.pt"
    assert HPSv2("v2").model_id == "xswu/HPSv2/HPS_v2_compressed.pt"


def test_hpsv2_gradient_and_chunks(hps):
    reward = hpsv2(hps[0], batch_size=2)
    raises_its_score(reward)
    images, rows = smooth(3, 40, 32), TWO.take([1, 0, 1])
    alone = torch.cat([reward(images[[row]], rows.take([row])) for row in range(3)])
    torch.testing.assert_close(reward(images, rows), alone, atol=1e-6, rtol=1e-5)


def test_an_unknown_architecture_and_foreign_weights_are_refused(hps):
    folder, _ = hps
    with pytest.raises(ConfigError, match="architecture"):
        HPSv2(model=str(folder), architecture="ViT-H-15")(smooth(1, 8, 8), prompts("x"))
    config = json.loads((folder / "tiny.json").read_text())
    config["vision_cfg"]["layers"] = 2
    (folder / "deeper.json").write_text(json.dumps(config))
    with pytest.raises(MissingError, match="Missing key"):
        load_hps(str(folder), "HPS_v2_compressed.pt", str(folder / "deeper.json"), "cpu")


# ---- ImageReward


@pytest.fixture(scope="module")
def image_reward(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image_reward")
    return folder, *save_image_reward(folder)


def reward_of(folder, **options) -> ImageReward:
    return ImageReward(str(folder), blip=str(folder), device="cpu", **options)


def test_image_reward_is_the_standardized_head_of_the_first_token(image_reward):
    folder, network, tokenizer = image_reward
    images = smooth(2, 32, 32)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    words = tokenizer(TWO.text, padding="max_length", max_length=35, return_tensors="pt")
    with torch.no_grad():
        seen = network.vision(pixel_values=(images - mean[:, None, None]) / std[:, None, None]).last_hidden_state
        read = network.text(words.input_ids, attention_mask=words.attention_mask, encoder_hidden_states=seen).last_hidden_state
        expected = (network.head(read[:, 0])[:, 0] - 0.16717363) / 1.03333950
    torch.testing.assert_close(reward_of(folder)(images, TWO), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(reward_of(folder, file="ImageReward.safetensors")(images, TWO), expected, atol=1e-6, rtol=1e-5)


def test_pairs_are_scored_and_not_all_combinations(image_reward, monkeypatch):
    """B pictures with B prompts are B forwards of a pair; a public implementation made B x B and kept the diagonal."""
    folder, *_ = image_reward
    network, _ = load_image_reward(str(folder), "ImageReward.pt", str(folder), "cpu")
    rows = []
    network.text.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    images, texts = smooth(5, 32, 32), TWO.take([0, 1, 0, 1, 1])
    together = reward_of(folder, batch_size=2)(images, texts)
    assert sum(rows) == 5
    alone = torch.cat([reward_of(folder)(images[[row]], texts.take([row])) for row in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_the_size_of_the_picture_is_that_of_the_weights(image_reward, tmp_path):
    """ImageReward was trained on 224 pixels, and the config of the BLIP that it names says 384."""
    from transformers import BlipConfig

    folder, _, tokenizer = image_reward
    config = BlipConfig.from_pretrained(folder)
    config.vision_config.image_size = 48
    config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    images = smooth(2, 40, 32)
    other = ImageReward(str(folder), blip=str(tmp_path), device="cpu")
    torch.testing.assert_close(other(images, TWO), reward_of(folder)(images, TWO), atol=0, rtol=0)


def test_the_prompt_matters_to_image_reward(image_reward):
    image = smooth(1, 32, 32).expand(2, -1, -1, -1)
    one, other = reward_of(image_reward[0])(image, TWO)
    assert abs(one - other) > 1e-6


def test_image_reward_gradient(image_reward):
    raises_its_score(reward_of(image_reward[0]))


def test_image_reward_needs_every_weight(image_reward, tmp_path):
    folder, *_ = image_reward
    weights = load_file(folder / "ImageReward.safetensors")
    del weights["mlp.layers.7.bias"]
    save_file(weights, tmp_path / "ImageReward.safetensors")
    with pytest.raises(MissingError, match="head.7.bias"):
        ImageReward(str(tmp_path), blip=str(folder))(smooth(1, 32, 32), prompts("x"))
    with pytest.raises(MissingError, match="BLIP's config and tokenizer"):
        ImageReward(str(tmp_path), blip=str(tmp_path))(smooth(1, 32, 32), prompts("x"))


# ---- HPSv3


@pytest.fixture(scope="module")
def hpsv3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hpsv3")
    return folder, save_hpsv3(folder)


def hps3(folder, **options) -> HPSv3:
    return HPSv3(str(folder), base=str(folder), dtype="float32", device="cpu", **options)


@pytest.fixture(autouse=True)
def few_pixels(monkeypatch):
    monkeypatch.setattr("rewards.image.hpsv3.PIXELS", 16 * 16)


def test_hpsv3_reads_the_head_at_the_special_token(hpsv3):
    folder, network = hpsv3
    images = smooth(2, 24, 24)
    scores = hps3(folder, batch_size=2)(images, TWO)
    _, processor = load_hpsv3(str(folder), "HPSv3.safetensors", str(folder), "float32", "cpu")
    for row, text in enumerate(TWO.text):  # one at a time: without padding
        words = chat(processor, TEMPLATE.replace("{prompt}", text))
        assert words.count("<|Reward|>") == 1 and text in words
        batch = processor(images=as_pil(images[[row]]), text=[words], return_tensors="pt")
        with torch.no_grad():
            hidden = network.body(**batch).last_hidden_state[0]
            mean, spread = network.head(hidden[batch["input_ids"][0].tolist().index(len(processor.tokenizer) - 1)])
        assert scores.value[row].item() == pytest.approx(mean.item(), abs=2e-5)
        assert scores.parts["hpsv3_spread"][row].item() == pytest.approx(spread.item(), abs=2e-5)
    tenth = hps3(folder, scale=0.1)(images, TWO).value
    torch.testing.assert_close(tenth, scores.value / 10, atol=1e-5, rtol=0)


def test_hpsv3_sees_picture_prompt_and_wording(hpsv3, tmp_path):
    image = smooth(1, 24, 24)
    base = hps3(hpsv3[0])(image, prompts("a red circle")).value
    (tmp_path / "ask.txt").write_text("How good is this: {prompt}?")
    others = [
        hps3(hpsv3[0])(1 - image, prompts("a red circle")),
        hps3(hpsv3[0])(image, prompts("two blue squares")),
        hps3(hpsv3[0], template=str(tmp_path / "ask.txt"))(image, prompts("a red circle")),
    ]
    assert all((other.value - base).abs() > 1e-6 for other in others)


def test_a_wording_may_hold_the_token_and_a_prompt_may_not(hpsv3):
    """The published question goes on after the token; a prompt that writes the token itself would move the head."""
    image, folder = smooth(1, 24, 24), hpsv3[0]
    inside = hps3(folder, template="Rate {prompt} <|Reward|> END")(image, prompts("a circle")).value
    outside = hps3(folder, template="Rate {prompt}")(image, prompts("a circle")).value
    torch.testing.assert_close(inside, outside, atol=1e-5, rtol=0)  # causal: what follows the token does not count
    cheat = hps3(folder, template="Rate {prompt}")(image, prompts("a <|Reward|>circle")).value
    torch.testing.assert_close(cheat, outside, atol=1e-5, rtol=0)


def test_positions_stay_float32_in_a_half_precision_network(hpsv3):
    """Rotary frequencies of 8 bits are off by up to 0.2 %: some hundred tokens later the angle is wrong by a radian."""
    exact, _ = load_hpsv3(str(hpsv3[0]), "HPSv3.safetensors", str(hpsv3[0]), "float32", "cpu")
    half, _ = load_hpsv3(str(hpsv3[0]), "HPSv3.safetensors", str(hpsv3[0]), "bfloat16", "cpu")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    for name, wanted in exact.named_buffers():
        assert torch.equal(half.get_buffer(name), wanted), name


def test_hpsv3_takes_its_weights_from_the_file_and_makes_none_before(hpsv3, monkeypatch):
    """7 billion random numbers in float32 would be 28 GB, only to be overwritten."""
    before = []

    def watched(network, *given, **how):
        before.append(kinds(network))
        fill(network, *given, **how)

    monkeypatch.setattr("rewards.image.hpsv3.fill", watched)
    network, _ = load_hpsv3.__wrapped__(str(hpsv3[0]), "HPSv3.safetensors", str(hpsv3[0]), "bfloat16", "cpu")
    assert before == [{"meta"}] and kinds(network) == {"cpu"}
    assert torch.nn.Linear(1, 1).weight.device.type == "cpu", "and other networks are made as before"


def kinds(network) -> set[str]:
    return {parameter.device.type for parameter in network.parameters()}


def test_hpsv3_needs_a_place_for_the_prompt_and_a_processor(tmp_path):
    with pytest.raises(ConfigError, match="template with {prompt}"):
        check_prompts({"hpsv3": HPSv3(template="How good?")}, prompts("x"))
    with pytest.raises(ConfigError, match=r"reward 'hpsv3': expected a template in a text file, got .*none\.txt"):
        check_prompts({"hpsv3": HPSv3(template=str(tmp_path / "none.txt"))}, prompts("x"))
    with pytest.raises(MissingError, match="processor of Qwen2-VL"):
        HPSv3(str(tmp_path), base=str(tmp_path))(smooth(1, 24, 24), prompts("x"))
