"""Replaying one trained step at a time: the same gradient and metrics, the rollout's own batch shapes, half precision."""

import pytest
import torch
from test_train import fresh, tiny

import studio.update as updating
from studio.errors import ConfigError
from studio.run import RunView
from studio.train import train

KINDS = {
    "guard": ("algorithm={name: grpo_guard, clip: 1.0e-5, kl: 0.01}",),
    "nft": ("policy={name: match, model: {id: shapes, train: full, text_length: 1}, sampler: {steps: 4, points: 3}}",),
}
KINDS["nft"] += ("algorithm=nft", "train.behavior.rate=0.01")


def run(root, name, *overrides):
    small = [o for o in overrides]
    recipe = tiny(*small, "watch.every=100", steps=2)
    folder = fresh(recipe, root, name)
    train(recipe, folder)
    view = RunView.open(folder.folder)
    return torch.load(view.checkpoint(2) / "state.pt", weights_only=True)["trainable"], view.metrics().records[1:]


def test_the_same_update_as_all_steps_at_once(tmp_path):
    whole, split = (run(tmp_path, f"split-{flag}", *KINDS["guard"], f"train.split_steps={flag}") for flag in (False, True))
    assert max((a - b).abs().max() for a, b in zip(whole[0], split[0], strict=True)) <= 1e-6
    for x, y in zip(whole[1], split[1], strict=True):
        assert x.keys() == y.keys() and any(name.endswith("@1") for name in x)
        for name in x.keys() - {"t"}:
            if not name.startswith("time/"):
                assert x[name] == pytest.approx(y[name], rel=1e-3, abs=1e-6), name


def test_the_replay_has_the_batches_of_the_rollout(tmp_path, monkeypatch):
    """4 parts of 2 rows, so 2 rows a forward in rollout and replay; then half precision rounds the same in both."""
    import flows.policy

    own = flows.policy.DenoisePolicy.velocity
    seen, largest = {"sample": set(), "replay": set()}, []

    def velocity(self, texts):
        seen["replay" if torch.is_grad_enabled() else "sample"].add(len(texts))
        return own(self, texts)

    monkeypatch.setattr(flows.policy.DenoisePolicy, "velocity", velocity)
    monkeypatch.setattr(updating, "_check_first_replay", lambda value, tolerance: largest.append(value))
    half = ("policy.model.train=lora", "policy.model.dtype=bfloat16", "train.gradient_accumulation_steps=4", "watch.prompts=2")
    run(tmp_path, "split", *half, "train.split_steps=true")
    assert seen == {"sample": {2}, "replay": {2}}
    assert largest[0] == 0.0
    run(tmp_path, "whole", *half)
    assert seen["replay"] == {2, 4}


def test_a_ratio_of_the_whole_row_cannot_be_split():
    recipe = tiny("algorithm=gspo", "train.split_steps=true")
    with pytest.raises(ConfigError, match="recipe.train.split_steps: expected an algorithm that looks at one decision"):
        recipe.check()


def test_pictures_are_decoded_in_float32_under_autocast():
    from flows.load import Model, load_backbone

    backbone = load_backbone(Model(text_length=1, device="cpu"))
    latents = torch.randn(3, *backbone.latent_shape)
    with torch.no_grad():
        usual = backbone.decode(latents)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(backbone.decode(latents), usual)


def test_pictures_are_decoded_a_few_at_a_time(monkeypatch):
    import flows.backbones.sd3
    from flows.load import Model, load_backbone

    backbone, sizes = load_backbone(Model(text_length=1, device="cpu")), []
    latents = torch.randn(5, *backbone.latent_shape)
    usual = backbone.decode(latents)
    backbone.pipeline.vae.decoder.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    monkeypatch.setattr(flows.backbones.sd3, "DECODED_PIXELS", 2 * 32 * 32)
    torch.testing.assert_close(backbone.decode(latents), usual, atol=1e-5, rtol=0)
    assert sizes == [2, 2, 1]
