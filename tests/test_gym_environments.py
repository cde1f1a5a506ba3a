"""Environments of gymnasium: as gymnasium runs them, seeded by copy, resumed by repeating, and failing with a name."""

import io
import os
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

from flows.control.fault import EnvironmentFault
from flows.control.goals import MuJoCo, PointMaze
from flows.control.gym import Gym
from studio.config import component
from studio.errors import ConfigError, DivergedError, MissingError, RunError
from studio.seeds import row_seed

SPACES = {
    "row": Box(-np.inf, np.inf, (2,), np.float64),
    "goal": Dict({name: Box(-9, 9, (1,)) for name in ("achieved_goal", "desired_goal", "observation")}),
    "parts": Dict({"b": Box(-9, 9, (2, 2)), "a": Discrete(3)}),
}
SEEN = {
    "row": lambda x, k: np.array([x, k]),
    "goal": lambda x, k: {"achieved_goal": np.array([x]), "desired_goal": np.array([7.0]), "observation": np.array([k])},
    "parts": lambda x, k: {"b": np.full((2, 2), x), "a": 1},
}


class Line(gymnasium.Env):
    """x moves by the action; out of ±3 ends it. Some actions break it, as do some kwargs."""

    def __init__(self, sees="row", acts=None, bound=1.0, luck=False, broken=""):
        self.observation_space, self.sees, self.luck, self.broken = SPACES[sees], sees, luck, broken
        self.action_space = acts or Box(-bound, bound, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.k = (options or {}).get("x", self.np_random.uniform(-1, 1)), 0
        return SEEN[self.sees](self.x, self.k), {"success": True}  # of an episode that has not begun: not to be told

    def step(self, action):
        if self.broken == "step" or action[0] > 0.9:
            raise ValueError("the gripper broke")
        if 0.8 < action[0] <= 0.9:
            os._exit(3)
        self.k += 1
        self.x += float(action[0]) + (float(np.random.rand()) if self.luck else 0.0)
        x = {-0.9: np.nan, -0.8: np.inf}.get(round(float(action[0]), 3), self.x)
        reward = np.nan if round(float(action[0]), 3) == -0.7 or self.broken == "reward" else self.x
        action *= 0  # some environments change what they were given
        return SEEN[self.sees](x, self.k), reward, abs(self.x) > 3, False, {"success": abs(self.x) > 3}


for name, kwargs in {
    "Line-v0": {},
    "Discrete-v0": {"acts": Discrete(2)},
    "Unbounded-v0": {"bound": np.inf},
    "Whole-v0": {"acts": Box(-3, 3, (1,), np.int64)},
}.items():
    gymnasium.register(name, Line, max_episode_steps=5, kwargs=kwargs)
gymnasium.register("Endless-v0", Line)

PENDULUM, LINE = "Pendulum-v1", "Line-v0"
SYNC = pytest.mark.parametrize("asynchronous", [False, True], ids=["in this process", "in workers"])


@pytest.fixture
def built():
    """Builds environments and closes them at the end."""
    made = []

    def build(options, *given):
        made.append(options.build(*given))
        return made[-1]

    yield build
    for env in made:
        env.close()


def actions(t, count, size):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(t)) * 1.5


def same(one, two):
    fields = ("observation", "reward", "terminated", "truncated", "after")
    return all(getattr(one, name).equal(getattr(two, name)) for name in fields) and all(
        value.equal(two.info[name]) for name, value in one.info.items()
    )


@SYNC
def test_a_copy_is_the_environment_with_the_seed_of_its_number(built, asynchronous):
    env = built(Gym(PENDULUM, asynchronous, limit=7), 2, 3, 11)
    single = gymnasium.make(PENDULUM, max_episode_steps=7)
    seeds = [row_seed(11, "env/4", episode) % 2**32 for episode in range(3)]
    seen, now = single.reset(seed=seeds[0])[0], env.reset()
    for t in range(16):
        assert now[1].tolist() == seen.tolist()
        action = actions(t, 2, 1) * 2
        step = env.step(action)
        seen, reward, _, cut, _ = single.step(action[1].clamp(-2, 2).numpy())
        assert step.after[1].tolist() == seen.tolist() and step.reward[1].item() == np.float32(reward)
        assert step.truncated[1].item() is cut is (t in (6, 13)) and not step.terminated.any()
        seen = single.reset(seed=seeds[(t + 1) // 7])[0] if cut else seen
        now = step.observation
    assert not env.reset()[0].equal(env.reset()[1])


def test_ends_by_the_task_and_by_the_clock_are_told_apart(built):
    env = built(Gym(LINE), 2, 0, 0, {"x": 2.5})
    env.reset()
    told = [env.step(torch.tensor([[0.2], [-0.2]])) for _ in range(5)]
    # x = 2.7, 2.9, 3.1: over; then anew from 2.5. The other goes down to 1.5 and is cut after five steps
    assert [step.terminated.tolist() for step in told] == [[False] * 2] * 2 + [[True, False]] + [[False] * 2] * 2
    assert [step.truncated.tolist() for step in told] == [[False] * 2] * 4 + [[False, True]]
    assert told[2].after[0].tolist() == pytest.approx([3.1, 3]) and told[2].observation[0].tolist() == [2.5, 0]
    assert told[4].after[1].tolist() == pytest.approx([1.5, 5]) and told[4].observation[1].tolist() == [2.5, 0]
    assert [step.info["success"].tolist() for step in told] == [[0, 0]] * 2 + [[1, 0]] + [[0, 0]] * 2
    env.reset()
    both = [env.step(torch.tensor([[0.12], [0.0]])) for _ in range(5)][-1]  # 3.1 at the fifth step
    assert both.terminated.tolist() == [True, False] and both.truncated.tolist() == [False, True]


@pytest.mark.parametrize(("sees", "row"), [("goal", [1.0, 7.0]), ("parts", [0.0, 1.0, 0.0, 0.75, 0.75, 0.75, 0.75])])
def test_observations_of_several_parts_become_one_row(built, sees, row):
    env = built(Gym(LINE, kwargs={"sees": sees}), 1, 0, 0, {"x": 0.5})
    env.reset()
    assert env.step(torch.tensor([[0.25]])).observation.tolist() == [row] and env.space.observation == len(row)


def test_actions_are_clipped_for_the_environment_only(built):
    env = built(Gym(LINE, kwargs={"bound": 0.5}), 2, 0, 0, {"x": 0.25})
    env.reset()
    far = torch.tensor([[9.0], [-1e30]])
    assert env.step(far).observation[:, 0].tolist() == [0.75, -0.25] and far[0, 0] == 9
    assert env.space.low == (-0.5,) and env.space.high == (0.5,)


@SYNC
def test_a_copy_lives_the_same_whatever_the_split(built, asynchronous):
    options = Gym(PENDULUM, asynchronous, limit=9)
    whole, *parts = built(Gym(PENDULUM, limit=9), 4, 0, 5), built(options, 2, 0, 5), built(options, 2, 2, 5)
    assert whole.reset().equal(torch.cat([env.reset() for env in parts]))
    for t in range(25):
        one, two = whole.step(actions(t, 4, 1)), [env.step(actions(t, 4, 1)[env.first :][:2]) for env in parts]
        for name in ("observation", "reward", "truncated", "after"):
            assert getattr(one, name).equal(torch.cat([getattr(step, name) for step in two])), name


RESUMED = {
    "pendulum": Gym(PENDULUM, limit=13),
    "pendulum in workers": Gym(PENDULUM, True, limit=13),
    "actions changed in place": Gym(LINE, kwargs={"bound": 0.5}, limit=13),
    "hopper": MuJoCo("Hopper-v5"),
    "a maze whose goals move": PointMaze("medium", diverse="both", reset_target=True, limit=25),
    "a maze that ends": PointMaze("umaze", continuing_task=False),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_environment_goes_on_bit_for_bit(built, name):
    options = RESUMED[name]
    if isinstance(options, MuJoCo | PointMaze):
        pytest.importorskip("gymnasium_robotics")
    env = built(options, 3, 2, 5)
    begin = env.reset()
    size = env.space.action
    for t in range(30):
        env.step(actions(t, 3, size))
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    file.seek(0)
    other = built(options, 3, 2, 5)
    other.load_state_dict(torch.load(file, weights_only=True))
    ends = 0
    for t in range(30, 60):
        step = env.step(actions(t, 3, size))
        assert same(step, other.step(actions(t, 3, size)))
        ends += int((step.terminated | step.truncated).sum())
    assert ends or name == "a maze that ends"
    assert env.state_dict()["episodes"] == other.state_dict()["episodes"]
    assert env.reset().equal(begin)  # all over again


def test_a_resume_that_cannot_be_exact_is_told(built):
    env = built(Gym(LINE, kwargs={"luck": True}), 2, 0, 0)
    env.reset()
    for _ in range(3):
        env.step(torch.zeros(2, 1))
    state = env.state_dict()
    with pytest.warns(UserWarning, match="Line-v0.*led elsewhere"):
        built(env.options, 2, 0, 0).load_state_dict(state)
    with pytest.raises(RunError, match="checkpoint of 3 copies, got one of 2"):
        built(env.options, 3, 0, 0).load_state_dict(state)
    assert "no time limit" in Gym("Endless-v0").check()[0] and Gym("Endless-v0", limit=5).check() == Gym(LINE).check() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Gym("Pendulum-v2"), "recipe.env.id: expected a registered.*got 'Pendulum-v2'.*did you mean 'Pendulum-v1'"),
        (Gym("Pendulm-v1"), "did you mean 'Pendulum-v1'"),
        (Gym("no blanks"), "recipe.env.id: expected a registered"),
        (Gym("CartPole-v1"), r"real actions \(Box\), got 'CartPole-v1' with Discrete\(2\)"),
        (Gym("Discrete-v0"), "real actions"),
        (Gym("Whole-v0"), "real actions"),
        (Gym("Unbounded-v0"), "finite bounds of all actions, got 'Unbounded-v0' with Box"),
        (Gym(PENDULUM, kwargs={"gee": 1}), "recipe.env.kwargs: expected arguments of 'Pendulum-v1', got {'gee': 1}"),
    ],
)
def test_what_cannot_be_acted_in_is_refused_before_a_run(options, words):
    with pytest.raises(ConfigError, match=words):
        options.check()
    with pytest.raises(ConfigError, match=words):
        options.build(2, 0, 0)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    for package, options in (("gymnasium_robotics", PointMaze()), ("mujoco", MuJoCo("Hopper-v5"))):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingError, match=rf"{package}.*pip install 'alignment-studio\[robotics\]'") as caught:
            options.check()
        assert caught.value.exit_code == 3
    with pytest.raises(MissingError, match="no_such_package"):
        Gym("no_such_package:Env-v0").check()


def test_a_maze_is_named_by_its_options():
    pytest.importorskip("gymnasium_robotics")
    names = {option: option.gym().id.partition(":")[2] for option in (PointMaze(), PointMaze("medium", diverse="goal"))}
    assert list(names.values()) == ["PointMaze_UMazeDense-v3", "PointMaze_Medium_Diverse_GDense-v3"]
    assert PointMaze("large", False, "both").gym().id.endswith(":PointMaze_Large_Diverse_GR-v3")
    with pytest.raises(ConfigError, match="diverse: expected no for map umaze"):
        component("env", "pointmaze", map="umaze", diverse="goal")


def test_a_maze_pays_by_distance_and_knows_success(built):
    pytest.importorskip("gymnasium_robotics")
    paid = {}
    for dense in (True, False):
        env = built(PointMaze("open", dense, continuing_task=False), 1, 0, 0, {"reset_cell": (1, 1), "goal_cell": (1, 2)})
        env.reset()
        toward = 0
        while not toward:  # straight to the goal until it is reached
            now = env.now[0]
            step = env.step((now[4:] - now[:2])[None] * 3)
            distance = (step.after[0, :2] - step.after[0, 4:]).norm().item()
            toward = int(step.terminated) or int(step.truncated)
            paid.setdefault(dense, []).append((distance, step.reward.item(), bool(step.info["success"])))
    assert all(reward == pytest.approx(np.exp(-distance), abs=1e-5) for distance, reward, _ in paid[True])
    assert all(reward == (distance <= 0.45) == success for distance, reward, success in paid[False])
    assert [success for _, _, success in paid[False]] == [False] * (len(paid[False]) - 1) + [True]


@pytest.mark.filterwarnings("ignore:.*ERROR")  # gymnasium shows the traceback of a worker as a warning
@SYNC
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1.0, "environment 'Line-v0', copy 6, action 1 of the episode with seed .*ValueError: the gripper broke"),
        (-0.9, "environment 'Line-v0', copy 6: expected finite observations, got nan, 2"),
        (-0.8, "copy 6: expected finite observations, got inf, 2"),
        (-0.7, "copy 6: expected finite rewards, got nan"),
    ],
)
def test_a_copy_that_fails_is_named_and_the_others_end(built, asynchronous, value, words):
    env = built(Gym(LINE, asynchronous), 3, 4, 0)
    env.reset()
    env.step(torch.zeros(3, 1))
    workers = env.vector.processes if asynchronous else []
    with pytest.raises(EnvironmentFault, match=words) as caught:
        env.step(torch.tensor([[0.0], [0.0], [value]]))
    assert caught.value.exit_code == 1
    assert not any(worker.is_alive() for worker in workers) and env.vector.closed


def test_a_worker_that_dies_is_named_and_the_others_end(built):
    env = built(Gym(LINE, True), 3, 4, 0)
    env.reset()
    with pytest.raises(EnvironmentFault, match="environment 'Line-v0', copy 5: expected an answer of its process"):
        env.step(torch.tensor([[0.0], [0.85], [0.0]]))
    assert not any(worker.is_alive() for worker in env.vector.processes)


@pytest.mark.filterwarnings("ignore:.*ERROR")
@SYNC
def test_a_copy_that_cannot_start_is_named(built, asynchronous):
    env = built(Gym(LINE, asynchronous), 2, 4, 0, {"x": "nowhere"})
    with pytest.raises(EnvironmentFault, match="environment 'Line-v0', copy [45], action 0 .*: expected a reset, got ValueError"):
        env.reset()


def test_an_environment_that_fails_at_once_fails_the_check():
    with pytest.raises(EnvironmentFault, match="environment 'Line-v0': expected a first step, got ValueError: the gripper broke"):
        Gym(LINE, kwargs={"broken": "step"}).check()
    with pytest.raises(EnvironmentFault, match="environment 'Line-v0', copy 0: expected finite rewards, got nan"):
        Gym(LINE, kwargs={"broken": "reward"}).check()


def test_actions_that_are_no_numbers_are_the_policys_fault(built):
    env = built(Gym(PENDULUM), 2, 0, 0)
    env.reset()
    with pytest.raises(DivergedError, match="expected finite actions, got 1 that are not"):
        env.step(torch.tensor([[0.0], [torch.nan]]))
