"""The model card: the same run gives the same bytes, licenses are inherited, nothing of this machine gets out."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from studio.card import body, copy_pairs, public, write_card
from studio.config import build, dump
from studio.license import License, base_license
from studio.recipe import Recipe, load_recipe
from studio.results import Row, results
from studio.run import Run, RunView

FACTS = {"step": 4, "format": "lora", "weights": "ema", "base": "shapes", "pipeline": "StableDiffusion3Pipeline"}
FACTS |= {"component": "transformer", "run": "r"}
EVALS = [(0, 0.50, 0.80), (2, 0.60, 0.75), (4, 0.90, 0.70), (6, 0.95, 0.10)]  # step, scene, held-out clip


@pytest.fixture
def view(tmp_path):
    """A run folder written by hand: four evaluations with pictures, an alarm at step 4 and one at step 6."""
    recipe = load_recipe("shapes/grpo-guard", ["policy.model.train=lora", "train.steps=6"])[0]
    run = Run.create(tmp_path / "runs", "r", dump(recipe), total_steps=6, command=["studio", "train", "--token", "hf_secret"])
    for step, scene, clip in EVALS:
        run.log(step, {"reward/eval.scene": scene, "reward/held_out.clip": clip, "sample/luminance": 0.5, "reward/mean": 9.0})
        folder = run.folder / "samples" / f"{step:06d}"
        folder.mkdir()
        rows = []
        for i, prompt in enumerate(["a red circle", "a | b"]):
            Image.new("RGB", (4, 4), (step * 20, i, 0)).save(folder / f"p{i}.png")
            rows.append({"step": step, "prompt": prompt, "seed": 7 + i, "path": f"samples/{step:06d}/p{i}.png"})
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (4, 6):
        run.event("alarm", step=step, message=f"held-out clip fell at {step}")
        (run.folder / "checkpoints" / f"{step:06d}").mkdir()
        (run.folder / "checkpoints" / f"{step:06d}" / "COMPLETE").touch()
    return RunView.open(run.folder)


def card(view, folder, license=None, **facts):
    facts = FACTS | facts
    folder.mkdir()
    recipe = build(Recipe, view.recipe)
    write_card(view, recipe, facts, license or License("apache-2.0"), copy_pairs(view, facts["step"], folder), folder)
    return ModelCard.load(folder / "README.md")


def test_the_same_run_gives_the_same_bytes_and_every_picture_is_there(view, tmp_path):
    first, second = card(view, tmp_path / "a"), card(view, tmp_path / "b")
    assert (tmp_path / "a" / "README.md").read_bytes() == (tmp_path / "b" / "README.md").read_bytes()
    named = [item["output"]["url"] for item in first.data.widget] + re.findall(r"!\[\w+\]\(([^)]+)\)", first.content)
    assert len(named) == 6 and all((tmp_path / "a" / name).is_file() for name in named)
    before, after = (Image.open(tmp_path / "a" / "images" / f"000-{side}.png").getpixel((0, 0)) for side in ("before", "after"))
    assert (before, after) == ((0, 0, 0), (80, 0, 0))  # step 0 and step 4, not the later step 6
    assert second.data.base_model_relation == "adapter" and first.data.library_name == "diffusers"


def test_proxy_and_gold_before_and_after(view, tmp_path):
    shown = card(view, tmp_path / "a")
    assert "| scene | proxy | 0.5000 | 0.9000 |" in shown.content
    assert "| clip | gold | 0.8000 | 0.7000 |" in shown.content
    assert "| luminance | guard | 0.5000 | 0.5000 |" in shown.content
    assert {(r.metric_type, r.metric_value) for r in shown.data.eval_results} == {("scene", 0.9), ("clip", 0.7)}
    assert "alarm: held-out clip fell at 4" in shown.content and "fell at 6" not in shown.content


def test_results_of_a_summary_are_used_for_the_step_and_weights_it_speaks_of(view):
    side = {"scene": 0.1, "clip": 0.2, "guards": {"luminance": 0.3}}
    later = {"scene": 0.4, "clip": 0.5, "guards": {"luminance": 0.6}}
    (view.folder / "summary.json").write_text(json.dumps({"prompts": 9, "step": 6, "before": side, "after": later}))
    rows = [Row("scene", "proxy", 0.1, 0.4), Row("clip", "gold", 0.2, 0.5), Row("luminance", "guard", 0.3, 0.6)]
    assert results(view, 6) == rows
    assert results(view, 4)[0] == Row("scene", "proxy", 0.5, 0.9)
    assert results(view, 6, averaged=False)[0] == Row("scene", "proxy", 0.5, 0.95)


def test_pictures_and_figures_of_other_weights_say_so(view, tmp_path):
    assert "after is at step 4" in card(view, tmp_path / "a", step=5).content
    live = card(view, tmp_path / "b", weights="live").content
    assert live.count("of the averaged weights, not of these") == 2 and "weights as the optimizer left them" in live


def test_rewards_with_their_licenses_algorithm_and_use(view, tmp_path):
    shown = card(view, tmp_path / "a").content
    assert "| scene | trained, weight 1 | - | Apache-2.0 |" in shown and "| clip | held out | bundled |" in shown
    assert "arXiv:2510.22319" in shown
    assert 'pipe.load_lora_weights("THIS-REPOSITORY", weight_name="pytorch_lora_weights.safetensors")' in shown
    assert "num_inference_steps=8, guidance_scale=1, max_sequence_length=1" in shown
    whole = card(view, tmp_path / "b", format="pipeline")
    assert whole.data.base_model_relation == "finetune" and "load_lora_weights" not in whole.content
    assert "lora" not in whole.data.tags and "lora" in card(view, tmp_path / "c").data.tags


def test_no_path_no_secret_and_no_address_gets_out(view, tmp_path):
    recipe = dict(view.recipe)
    recipe["policy"]["model"]["id"] = "/home/someone/models/my-sd3"
    recipe["prompts"] = {"name": "file", "train": "/home/someone/prompts.txt", "test": "~/other.txt"}
    replaced = build(Recipe, recipe)
    facts = FACTS | {"base": "/home/someone/models/my-sd3"}

    class Other:
        def __getattr__(self, name):
            return getattr(view, name)

    other = Other()
    other.recipe = recipe | {"server": {"url": "https://rewards.internal:8000", "token": "hf_abc", "api_key": None}}
    text = body(other, replaced, facts, License(), [], [])
    for private in ("/home", "someone", "~", "hf_abc", "hf_secret", "internal", str(tmp_path)):
        assert private not in text
    assert "my-sd3" in text and "prompts.txt" in text and "token: (removed)" in text and "api_key: null" in text
    assert public({"a": ["/x/y.txt", "relative/z", 3]}) == {"a": ["y.txt", "relative/z", 3]}


@pytest.mark.parametrize(
    ("base", "front"),
    [
        (
            "stabilityai/stable-diffusion-3.5-medium",
            ("other", "stabilityai-ai-community", "stable-diffusion-3.5-medium/blob/main/LICENSE.md"),
        ),
        ("black-forest-labs/FLUX.1-dev", ("other", "flux-1-dev-non-commercial-license", "FLUX.1-dev/blob/main/LICENSE.md")),
        ("black-forest-labs/FLUX.1-schnell", ("apache-2.0", None, "")),
    ],
)
def test_licenses_of_the_gated_families_are_filled(view, tmp_path, base, front):
    shown = card(view, tmp_path / "a", base_license(base), base=base)
    assert (shown.data.license, shown.data.to_dict().get("license_name")) == front[:2]
    assert (shown.data.to_dict().get("license_link") or "").endswith(front[2])
    assert shown.data.base_model == base


def test_a_license_comes_from_the_bases_own_card_and_an_unknown_one_says_so(view, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: http://x/y\n---\n# base\n")
    assert base_license("./somewhere", tmp_path) == License("other", "mine", "http://x/y")
    (tmp_path / "README.md").write_text("# a card without front matter\n")
    unknown = base_license("./somewhere", tmp_path)
    assert unknown == License("unknown")
    shown = card(view, tmp_path / "a", unknown, base="./somewhere")
    assert shown.data.license == "unknown" and "states no license that could be found" in shown.content
    assert shown.data.base_model is None and base_license("someone/unheard-of") == License()


def test_a_card_in_the_cache_of_the_hub_is_read(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda repo, file, revision: asked.append(revision) or str(tmp_path / file)
    )
    assert base_license("someone/model") == base_license("someone/model", revision="v2") == License("mit")
    assert asked == [None, "v2"], "a license may change from one revision to the next"


def test_the_usage_names_the_revision_that_was_trained(view, tmp_path):
    assert "revision" not in card(view, tmp_path / "a", base="someone/model").content.partition("## Training")[0]
    recipe = view.recipe
    recipe["policy"]["model"]["revision"] = "v2"
    (view.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    shown = card(view, tmp_path / "b", base="someone/model").content
    assert '.from_pretrained("someone/model", revision="v2")' in shown
    whole = card(view, tmp_path / "c", base="someone/model", format="pipeline").content
    assert '.from_pretrained("THIS-REPOSITORY")' in whole
