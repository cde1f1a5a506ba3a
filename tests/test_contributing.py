"""The examples of CONTRIBUTING.md and README.md run as they stand there and do what they claim."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from toys import TOYS, Tokens, learned, rollout_of

from flows.denoise import RowNoise, denoise
from flows.policy import DenoisePolicy
from flows.sampler import Sampler
from rewards.score import score_all
from studio import registry
from studio.config import build, parse_yaml
from studio.core import assign_credit, check_fit, policy_loss
from studio.protocols import RewardFn
from studio.recipe import Recipe, load_recipe
from studio.types import Prompts

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
MARKED = re.compile(r"<!-- test: (\w+) -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLES = dict(MARKED.findall(TEXT))


@pytest.fixture
def example(request, monkeypatch) -> ModuleType:
    """The code block under `<!-- test: NAME -->`, executed as a module of its own."""
    module = ModuleType(f"contributing_{request.param}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    code = compile(EXAMPLES[request.param], f"CONTRIBUTING.md: {request.param}", "exec")
    exec(code, module.__dict__)
    return module


def of(name: str):
    return pytest.mark.parametrize("example", [name], indirect=True)


def prompts(*texts: str) -> Prompts:
    return Prompts(list(texts), list(texts), [{} for _ in texts])


def test_every_python_block_is_tested():
    assert list(EXAMPLES) == ["algorithm", "reward", "backbone"]
    assert TEXT.count("```python") == len(EXAMPLES)


@of("algorithm")
def test_algorithm_by_hand(example):
    # r = 1.1, A = 2: 2·1.1 - 2·0.1²/0.4 = 2.2 - 0.05;  A = -2: -2.2 - 0.05
    log_ratio = torch.tensor([[1.1, 1.1]]).log()
    value = example.Pull(0.2)(log_ratio, torch.tensor([[2.0, -2.0]]), torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(value, torch.tensor([[2.15, -2.25]]))


@of("algorithm")
def test_algorithm_pulls_back_beyond_its_width(example):
    log_ratio = torch.tensor([[1.1, 1.2, 1.3]]).log().requires_grad_()
    example.Pull(0.2)(log_ratio, torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool)).sum().backward()
    slope = log_ratio.grad[0]
    assert slope[0] > 0.1 and slope[1].abs() < 1e-5 and slope[2] < -0.1


@of("algorithm")
@pytest.mark.parametrize("toy", [name for name, toy in TOYS.items() if "logp" in toy.provides])
def test_algorithm_has_a_finite_loss_on_every_policy(example, toy):
    policy, objective = TOYS[toy](), example.SimplePO().objective()
    check_fit("simple_po", objective, policy.provides, toy)
    rollout = rollout_of(policy)
    loss, _ = policy_loss(objective, policy.evaluate(rollout), rollout, assign_credit(objective, rollout))
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in policy.trainable() if p.grad is not None)


@of("algorithm")
def test_algorithm_learns(example):
    assert learned(Tokens(), example.SimplePO().objective()) > 0.5


@of("reward")
def test_reward_gives_the_expected_numbers(example):
    colors = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.0, 1.0, 1.0], [torch.nan, 0.0, 0.0]])
    pictures = colors[:, :, None, None].expand(4, 3, 8, 8)
    scores = score_all({"redness": example.Redness()}, pictures, prompts("a", "b", "c", "d"))["redness"]
    assert scores.value.tolist() == [1.0, 0.0, -1.0, 0.0]
    assert scores.present.tolist() == [True, True, True, False]


@of("reward")
def test_reward_has_what_a_reward_declares(example):
    reward = example.Redness(others=0.5)
    assert all(hasattr(reward, field) for field in (*RewardFn.__annotations__, "name"))
    assert reward.range == (-0.5, 1.0)
    with pytest.raises(FrozenInstanceError):
        reward.others = 2.0


@of("reward")
def test_reward_is_differentiable_as_it_says(example):
    pictures = torch.full((1, 3, 2, 2), 0.5, requires_grad=True)
    example.Redness()(pictures, prompts("a")).value.sum().backward()
    assert pictures.grad[0].sum(dim=(1, 2)).tolist() == [1.0, -0.5, -0.5]


@of("backbone")
def test_backbone_denoises_to_what_the_prompt_asks_for(example):
    backbone = example.TwoTone()
    condition = backbone.encode(["red", "blue", "red and blue"])
    start = RowNoise([1, 2, 3], backbone.latent_shape)()
    with torch.no_grad():
        latents = denoise(lambda x, sigma: backbone.velocity(x, sigma, condition), start, backbone.sigmas(4))
    images = backbone.decode(latents)
    # the last Euler step has h = sigma: x - sigma·(x - data)/sigma = data
    torch.testing.assert_close(images.mean((2, 3)), torch.tensor([[1.0, 0, 0], [0, 0, 1], [1, 0, 1]]))


@of("backbone")
def test_backbone_becomes_a_policy_that_replays_its_samples(example):
    policy = DenoisePolicy(example.TwoTone(), Sampler(steps=5, grid="pipeline"))
    rows = prompts("red", "red", "blue", "blue")
    rollout = policy.sample(rows, group=torch.tensor([0, 0, 1, 1]), seeds=[1, 2, 3, 4], step=0)
    assert rollout.samples.shape == (4, 3, 4, 4) and rollout.mask.shape == (4, 4)
    said = policy.evaluate(rollout)
    torch.testing.assert_close(said.logp, rollout.old.logp)

    # more red for the red prompts: the better of two samples becomes likelier
    rollout = replace(rollout, reward=torch.tensor([1.0, 0.0, 0.5, 0.5]))
    from flows.guard import GRPOGuard

    objective = GRPOGuard().objective()
    check_fit("grpo_guard", objective, policy.provides, "two_tone")
    loss, _ = policy_loss(objective, said, rollout, assign_credit(objective, rollout))
    loss.backward()
    gradient = policy.backbone.network.weight.grad
    assert gradient.isfinite().all() and gradient[:, 0].abs().sum() > 0 and gradient[:, 1].abs().sum() == 0


@pytest.mark.parametrize("kind", ["algorithm", "reward"])
def test_readme_lists_every(kind):
    missing = [name for name in registry.names(kind) if f"| `{name}` |" not in README]
    assert not missing


def test_readme_recipe_is_accepted():
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert build(Recipe, parse_yaml(block, "README.md")).check() == []


def test_readme_overrides_are_accepted():
    text = README.replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("studio train shapes")]
    assert len(commands) >= 4
    for _, _, recipe, *rest in commands:
        load_recipe(recipe, [word for word in rest if "=" in word])
    load_recipe("shapes/grpo-guard", ["algorithm=flow_grpo"])


def test_readme_links_and_layout_exist():
    places = re.findall(r"\]\(([^)#]+)\)", README)
    layout = README.partition("## Project layout")[2]
    places += [line.split()[0] for line in re.findall(r"^\S+/ .*$", layout, re.MULTILINE)]
    assert len(places) > 5 and not [place for place in places if not (ROOT / place).exists()]
