"""What is measured of a control policy and what leaves the run: coverage, entropy, pictures, films, the file for deployment."""

import json
import math
from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from test_arena import tiny
from test_train import fresh

from flows.control.deploy import Deployed
from flows.control.displacement import MultiGoal4
from flows.control.look import numbers, play, spread_entropy
from flows.control.multigoal import MultiGoal, coverage
from flows.control.normalize import Normalizer
from flows.control.pictures import GOAL, Scene, actions, paths, velocity, world
from studio.compare import compare
from studio.draw import draw
from studio.errors import ConfigError
from studio.export import Export, export_run
from studio.parts import build_parts
from studio.report import write_report
from studio.run import RunView
from studio.settings import Acting
from studio.state import final_weights
from studio.train import train


def test_coverage_by_hand():
    """Six goals; four successes at goal 0, one at goal 1, one outside of the box at goal 2, two nowhere."""
    goals = MultiGoal().places()
    place = torch.stack([goals[0]] * 4 + [goals[1] + torch.tensor([0.9, 0.0])] + [goals[2]] + [torch.zeros(2)] * 2)
    alive = torch.tensor([True] * 5 + [False] + [True] * 2)
    found = coverage(place, goals, alive)
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2)) / math.log(6)
    assert found == pytest.approx({"success": 5 / 8, "covered": 2, "evenness": entropy, "largest": 0.8})
    assert coverage(torch.zeros(3, 2), goals, torch.ones(3, dtype=torch.bool)) == {
        "success": 0,
        "covered": 0,
        "evenness": 0,
        "largest": 0,
    }
    even = coverage(goals.repeat(10, 1), goals, torch.ones(60, dtype=torch.bool))
    assert even == pytest.approx({"success": 1, "covered": 6, "evenness": 1, "largest": 1 / 6})


def test_a_goal_counts_from_a_quarter_of_an_even_share():
    goals = MultiGoal().places()
    place = torch.cat([goals[:1].repeat(23, 1), goals[1:2]])  # 1/24 = 1/(4·6)
    assert coverage(place, goals, torch.ones(24, dtype=torch.bool))["covered"] == 2
    place = torch.cat([goals[:1].repeat(24, 1), goals[1:2]])
    assert coverage(place, goals, torch.ones(25, dtype=torch.bool))["covered"] == 1


@pytest.mark.parametrize(("std", "dims"), [(1.0, 2), (0.1, 2), (3.0, 3)])
def test_the_entropy_of_a_gaussian(std, dims):
    x = std * torch.randn(4000, dims, generator=torch.Generator().manual_seed(0))
    assert spread_entropy(x) == pytest.approx(dims * (0.5 * math.log(2 * math.pi * math.e) + math.log(std)), abs=0.08)


@dataclass
class Still:
    """A policy that pushes in one direction, and what it is asked."""

    push: tuple[float, float]
    space = MultiGoal().build(1, 0, 0).space

    def draws(self, step, steps, rows):
        return {"noise": torch.zeros(steps, rows, 2)}

    def decide(self, observation, draw, mode):
        return torch.tensor(self.push).expand(len(observation), 2)


def test_episodes_are_counted_whole_and_alike():
    """From the origin with acceleration (5, 0): x after k steps is 0.05·k(k-1)·... leaves the box before the time limit."""
    normalizer = Normalizer(Acting(), 4, 1)
    seen = play(MultiGoal(), Still((5.0, 0.0)), normalizer, 6, seed=0, start=(0.0, 0.0))
    steps = next(k for k in range(1, 60) if 0.1 * 0.5 * (k * (k - 1) / 2) > 8)
    assert seen.dead.all() and seen.length.tolist() == [steps] * 6 and (seen.last[:, 0] > 8).all()
    assert len(seen.path) == steps and not seen.path.isnan().any()
    told = numbers(MultiGoal(), seen)
    assert told["success"] == 0 and told["length"] == steps
    rest = play(MultiGoal(), Still((0.0, 0.0)), normalizer, 3, seed=0, start=(0.0, 0.0))
    assert (
        rest.length.tolist() == [51] * 3
        and not rest.dead.any()
        and rest.result.tolist() == pytest.approx([51 * 0.00826381] * 3, rel=1e-4)
    )


def test_copies_share_the_episodes():
    """Ten episodes on at most four copies: three of each."""

    @dataclass(frozen=True)
    class Few(MultiGoal4):
        copies = 4

    seen = play(Few(), Still((0.0, 0.0)), Normalizer(Acting(), 2, 1), 10, seed=3)
    assert len(seen.result) == 12 and seen.path.shape[1] == 4
    assert seen.path[-1].isnan().all() or not seen.path[-1].isnan().any()


def test_pictures_show_goals_paths_and_arrows():
    scene = Scene((-8, -8), (8, 8), [(5.0, 0.0)])
    empty = world(scene, "").picture()
    middle = empty[:, 180, int(360 * 13 / 16)]
    assert middle.tolist() == pytest.approx([1 - 70 / 255 * (1 - c / 255) for c in GOAL], abs=0.02)
    line = torch.linspace(-6, 6, 20)
    path = torch.stack([line, line], 1)[:, None]
    shown = paths(scene, path)
    changed = (shown - empty).abs().sum(0) > 0.05
    assert changed[180, 180] and changed[315, 45] and changed[45, 315] and not changed[315, 315]  # up is up
    cloud = actions(scene, torch.tensor([[0.0, 0.0]]))
    assert cloud[:, 180, 180].min() < 0.9
    still, moving = velocity(scene, lambda x, tau: 0 * x), velocity(scene, lambda x, tau: torch.ones_like(x) * 8)
    assert moving.mean() < still.mean()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    recipe = tiny("policyflow", "acting.observations=true", "policy.fidelity=2", steps=3)
    root = tmp_path_factory.mktemp("finished")
    train(recipe, fresh(recipe, root))
    return recipe, root


def test_before_and_after_in_every_mode(finished):
    recipe, root = finished
    summary = compare(root / "run", 20)
    assert summary["episodes"] == 20 and summary["step"] == 3
    names = {"return", "success", "covered", "noiseless.return", "deterministic.success"}
    assert names <= summary["before"].keys() and names <= summary["after"].keys()
    assert summary["before"]["return"] != summary["after"]["return"]
    assert "deterministic.action_entropy" not in summary["after"]  # a single point has none
    page = write_report(root / "run").read_text(encoding="utf-8")
    assert "Control report" in page and "Ratio fidelity" in page and "first actions" in page and "held-out reward" not in page


def test_every_evaluation_leaves_a_small_film(finished):
    record = RunView.open(finished[1] / "run").samples(3)[0]
    file = finished[1] / "run" / record["film"]
    assert record["prompt_id"] == "paths" and file.stat().st_size < 500_000
    with Image.open(file) as film:
        assert 10 <= film.n_frames <= 20
        assert [film.seek(at) or film.convert("RGB").tobytes() for at in (0, 5)] != [film.convert("RGB").tobytes()] * 2


def test_the_exported_policy_acts_as_the_trained_one(finished):
    recipe, root = finished
    facts = export_run(RunView.open(root / "run"), Export(format="torchscript"))
    loaded = torch.jit.load(str(root / "run" / "export" / "torchscript" / "policy.pt"))
    parts = build_parts(recipe)
    parts.policy.load(final_weights(root / "run"))
    parts.env.load(final_weights(root / "run"))
    own = torch.Generator().manual_seed(3)
    observation, noise = torch.randn(9, 4, generator=own) * 4, torch.randn(9, facts["noise"], generator=own)
    with torch.no_grad():
        wanted = parts.policy.decide(
            parts.env.normalizer.observation(observation), {"z": noise[:, :2], "noise": noise[:, 2:]}, "noiseless"
        )
    assert (loaded(observation, noise) - wanted.clamp(-5, 5)).abs().max() <= 1e-5 and wanted.abs().max() > 0.1
    assert parts.env.normalizer.observations.count > 0  # the scale travels with it
    assert (loaded(observation, noise) - loaded(observation * 0, noise)).abs().max() > 1e-4
    assert json.loads((root / "run" / "export" / "torchscript" / "policy.json").read_text())["high"] == [5.0, 5.0]
    with pytest.raises(ConfigError, match="expected --format torchscript for a control policy"):
        export_run(RunView.open(root / "run"), Export(format="lora"))


@pytest.mark.parametrize("name", ["ppo", "fpo", "fpo++", "dppo", "reinflow"])
def test_every_policy_can_be_deployed(name):
    parts = build_parts(tiny(name))
    module = Deployed(parts.policy, parts.env.normalizer)
    own = torch.Generator().manual_seed(3)
    observation, noise = torch.randn(9, 4, generator=own), 20 * torch.randn(9, module.size, generator=own)
    with torch.no_grad():
        action = module(observation, noise)
        assert torch.equal(torch.jit.trace(module, (observation, noise))(observation[:4], noise[:4]), action[:4])
    assert action.shape == (9, 2) and action.abs().max() <= 5


def test_a_film_of_many_episodes(finished):
    _, root = finished
    file = draw(root, "run", [], count=1, seed=0, base=False)
    with Image.open(file) as film:
        assert film.n_frames > 40
        film.seek(0)
        first = film.convert("RGB").tobytes()
        film.seek(30)
        assert film.convert("RGB").tobytes() != first
