"""Environments of our own: rewards and moves by hand, symmetries, ends, and episodes that depend on the copy's number only."""

import io
import math

import pytest
import torch

from flows.control.displacement import MultiGoal4
from flows.control.gridworld import DEATH, FREE, GOAL, WALL, GridWorld
from flows.control.multigoal import MultiGoal
from flows.control.starts import normal
from studio.config import component
from studio.errors import ConfigError

OURS = [MultiGoal(), MultiGoal4(), GridWorld("two_walls"), GridWorld("three_goals"), GridWorld("two_slits"), GridWorld("cshape")]
NAMES = ["multigoal", "multigoal4", "two_walls", "three_goals", "two_slits", "cshape"]


def acted(env, action):
    """One step with the same action in every copy."""
    return env.step(torch.tensor(action, dtype=torch.float32).expand(env.count, -1))


def begun(options, start, count=1):
    env = options.build(count, 0, 0, start)
    env.reset()
    return env


def same(one, two):
    fields = ("observation", "reward", "terminated", "truncated", "after")
    return all(getattr(one, name).equal(getattr(two, name)) for name in fields) and all(
        value.equal(two.info[name]) for name, value in one.info.items()
    )


@pytest.mark.parametrize(
    ("start", "action", "reward"),
    [
        ((0.0, 0.0), (0.0, 0.0), 0.00826381),  # 0.1·(e^-7.5 + e^-2.5), every goal 5 away
        ((5.0, 0.0), (0.0, 0.0), 0.2),  # 0.1·(1 + 1)
        ((4.0, 0.0), (1.0, 2.0), 0.15956556),  # 0.1·(e^-0.3 + e^-0.1 - 0.01·5)
        ((4.0, 0.0), (0.0, 20.0), 0.15956556 + 0.005 - 0.4),  # the cost is that of the action before it is clipped
    ],
)
def test_multigoal_rewards_by_hand(start, action, reward):
    assert acted(begun(MultiGoal(), start), action).reward.item() == pytest.approx(reward, abs=1e-8)


def test_multigoal_moves_with_the_velocity_from_before():
    env = begun(MultiGoal(), (1.0, -1.0))
    # v = 0 for the first move; then v = 0.1·clip((9, -2), ±5) = (0.5, -0.2)
    assert acted(env, (9.0, -2.0)).after.tolist() == [pytest.approx([1.0, -1.0, 0.5, -0.2])]
    assert acted(env, (0.0, 0.0)).after.tolist() == [pytest.approx([1.05, -1.02, 0.5, -0.2])]


def test_multigoal_looks_the_same_turned_by_a_sixth():
    turn = torch.tensor([[math.cos(math.pi / 3), -math.sin(math.pi / 3)], [math.sin(math.pi / 3), math.cos(math.pi / 3)]])
    start, moves, told = torch.tensor([1.0, 0.7]), torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), []
    for _ in range(6):
        env = begun(MultiGoal(), tuple(start.tolist()))
        told.append(torch.stack([env.step(move[None]).reward for move in moves]))
        start, moves = turn @ start, moves @ turn.T
    for rewards in told[1:]:
        torch.testing.assert_close(rewards, told[0], atol=2e-6, rtol=0)
    assert told[0].std() > 1e-3


def test_leaving_the_box_is_an_end_and_a_late_hour_is_a_cut():
    env = begun(MultiGoal(), (7.9, 0.0))
    steps = [acted(env, (5.0, 0.0)) for _ in range(3)]  # p = 7.9, 7.95, 8.05
    assert [step.terminated.item() for step in steps] == [False, False, True] and not steps[2].truncated
    assert steps[2].after[0, 0].item() == pytest.approx(8.05) and steps[2].observation[0].tolist() == pytest.approx([7.9, 0, 0, 0])
    env = begun(MultiGoal(), (0.0, 0.0))
    steps = [acted(env, (0.0, 0.0)) for _ in range(102)]
    assert [t for t, step in enumerate(steps) if step.truncated] == [50, 101]  # the counter is above 50 at the 51st step
    assert not any(step.terminated for step in steps)
    env = begun(MultiGoal(), (7.999, 0.0))
    env.clock.fill_(50)
    env.state[:, 2] = 1.0
    late = acted(env, (0.0, 0.0))
    assert late.terminated and not late.truncated  # both at once: nothing comes after


def test_multigoal_clocks_start_apart_unless_all_start_in_one_place():
    env = MultiGoal().build(400, 0, 0)
    env.reset()
    assert env.clock.min() == 0 and env.clock.max() == 49 and len(env.clock.unique()) > 45
    assert not begun(MultiGoal(), (0.0, 0.0), 8).clock.any()
    place = MultiGoal().build(4000, 0, 0).reset()
    assert place[:, :2].abs().max() <= 7 and not place[:, 2:].any()
    assert place[:, :2].std().item() == pytest.approx(14 / 12**0.5, rel=0.03)


@pytest.mark.parametrize(
    ("start", "action", "scale", "reward", "place"),
    [
        ((0.0, 0.0), (1.0, 0.0), 1.0, -46.0, (1.0, 0.0)),  # -30·1 - 4²
        ((0.0, 0.0), (3.0, 0.0), 1.0, -46.0, (1.0, 0.0)),  # clipped, also in its cost
        ((0.0, 3.0), (0.0, 0.5), 1.0, -9.75, (0.0, 3.5)),  # -30·0.25 - 1.5²
        ((4.5, 0.0), (0.0, 0.0), 1.0, 9.75, (4.5, 0.0)),  # -0.5² + 10
        ((4.5, 0.0), (0.0, 0.0), 0.1, 0.975, (4.5, 0.0)),
        ((4.0, 0.0), (0.0, 0.0), 1.0, -1.0, (4.0, 0.0)),  # at a distance of 1 it is not reached yet
        ((6.5, 6.0), (1.0, 0.0), 1.0, -70.0, (7.0, 6.0)),  # -30 - (2² + 6²): the box ends at 7
    ],
)
def test_multigoal4_rewards_by_hand(start, action, scale, reward, place):
    step = acted(begun(MultiGoal4(scale), start), action)
    assert step.reward.item() == pytest.approx(reward, abs=1e-5) and step.after[0].tolist() == pytest.approx(list(place))
    assert step.terminated.item() == step.info["success"].item() == (reward > 0)


def test_multigoal4_is_cut_at_its_horizon():
    env = begun(MultiGoal4(horizon=3), (0.0, 0.0))
    assert [acted(env, (0.1, 0.0)).truncated.item() for _ in range(7)] == [False, False, True] * 2 + [False]
    env = begun(MultiGoal4(horizon=1), (4.5, 0.0))
    assert not acted(env, (0.0, 0.0)).truncated  # reached: nothing was cut


def test_multigoal4_looks_the_same_turned_by_a_quarter():
    start = (0.3, 0.1)
    one, two = begun(MultiGoal4(), start), begun(MultiGoal4(), (-start[1], start[0]))
    for t in range(30):
        action = actions(t, 1)
        turned = torch.stack([-action[:, 1], action[:, 0]], 1)
        a, b = one.step(action), two.step(turned)
        assert a.reward.equal(b.reward) and torch.stack([-a.after[:, 1], a.after[:, 0]], 1).equal(b.after)


def test_normal_starts_are_normal():
    x = normal(0, 0, 0, 20000, 2).flatten()
    assert x.mean().item() == pytest.approx(0, abs=0.02) and x.std().item() == pytest.approx(1, abs=0.02)
    assert (x.abs() < 1.959964).float().mean().item() == pytest.approx(0.95, abs=0.005) and x.isfinite().all()
    assert MultiGoal4().build(20000, 0, 0).reset().std().item() == pytest.approx(0.1, abs=0.002)


@pytest.mark.parametrize(
    ("map", "counts"),
    [
        ("two_walls", {GOAL: 100}),  # four rows of 25
        ("three_goals", {GOAL: 27, DEATH: 9}),  # blocks of 3×3
        ("tree", {GOAL: 10, DEATH: 25}),
        ("two_slits", {GOAL: 25, WALL: 17}),  # a column with two openings of 4
        ("cshape", {GOAL: 25, WALL: 31}),  # 11 above, 11 below, 9 between
    ],
)
def test_maps_have_the_cells_of_the_paper(map, counts):
    cells = GridWorld(map).cells()
    assert {kind: int((cells == kind).sum()) for kind in (GOAL, DEATH, WALL) if (cells == kind).any()} == counts
    starts = ((GridWorld(map).build(4000, 0, 0).reset() + 1) * 12).round().long()
    assert (cells[starts[:, 0], starts[:, 1]] == FREE).all() and len(starts.unique(dim=0)) > 500


@pytest.mark.parametrize(
    ("map", "start", "action", "end", "reward"),
    [
        ("two_walls", (12, 12), (0.51, -1.7), (13, 11), 0),  # round(clip(a))
        ("two_walls", (12, 12), (0.5, -0.5), (12, 12), 0),  # half to even
        ("two_walls", (0, 12), (-1.0, 0.0), (0, 12), 0),  # the edge
        ("two_walls", (3, 2), (0.0, -1.0), (3, 1), 20),
        ("three_goals", (10, 12), (1.0, 0.0), (11, 12), -10),
        ("three_goals", (6, 10), (0.0, -1.0), (6, 9), 0),
        ("three_goals", (6, 9), (0.0, -1.0), (6, 8), 20),
        ("tree", (12, 10), (1.0, 0.0), (13, 10), -10),
        ("tree", (22, 14), (1.0, 0.0), (23, 14), 20),
        ("two_slits", (14, 3), (1.0, 1.0), (15, 4), 0),  # through the opening
        ("two_slits", (14, 3), (1.0, 0.0), (14, 3), 0),  # a wall
        ("two_slits", (14, 7), (1.0, 1.0), (14, 7), 0),  # not along it either
        ("cshape", (16, 12), (1.0, 0.0), (16, 12), 0),
        ("cshape", (7, 12), (1.0, 0.0), (8, 12), 0),  # open to the left
        ("cshape", (9, 12), (1.0, 0.0), (10, 12), 20),
    ],
)
def test_gridworld_moves_by_hand(map, start, action, end, reward):
    step = acted(begun(GridWorld(map), start), action)
    assert step.after[0].tolist() == pytest.approx([(end[0] - 12) / 12, (end[1] - 12) / 12])
    assert step.reward.item() == reward and step.terminated.item() == (reward != 0)
    assert step.info["success"].item() == (reward == 20)


def test_scenes_and_coverage_of_the_flat_worlds():
    scene = GridWorld("two_slits").scene()
    assert len(scene.walls) == 17 and len(scene.goals) == 25 and (1.0, -1.0) in scene.goals and not scene.deaths
    assert scene.walls[0] == pytest.approx((2.5 / 12, -12.5 / 12, 3.5 / 12, -11.5 / 12))  # of cell (15, 0)
    last = torch.tensor([[4.5, 0.0], [5.0, 0.5], [0.0, -4.1], [-1.0, 2.0]])
    told = MultiGoal4().coverage(last, torch.tensor([True, True, True, False]))
    assert told["success"] == 0.75 and told["covered"] == 2 and told["largest"] == pytest.approx(2 / 3)
    assert told["evenness"] == pytest.approx((2 / 3 * math.log(1.5) + math.log(3) / 3) / math.log(4))


def test_gridworld_is_cut_after_a_hundred_steps():
    env = begun(GridWorld(), (12, 12))
    flags = [(step.terminated.item(), step.truncated.item()) for step in (acted(env, (0.0, 0.0)) for _ in range(101))]
    assert flags == [(False, False)] * 99 + [(False, True), (False, False)]
    env = begun(GridWorld(), (12, 2))
    env.clock.fill_(99)
    step = acted(env, (0.0, -1.0))
    assert step.terminated and not step.truncated


def actions(t, count=37):
    """Actions of copies at step t."""
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(t)) * 2


@pytest.mark.parametrize("options", OURS, ids=NAMES)
def test_a_copy_lives_the_same_whatever_the_split(options):
    whole, *parts = options.build(37, 0, 5), options.build(17, 0, 5), options.build(20, 17, 5)
    begins = [env.reset() for env in (whole, *parts)]
    assert begins[0].equal(torch.cat(begins[1:]))
    ended = 0
    for t in range(120):
        one, two = whole.step(actions(t)), [env.step(actions(t)[env.first :][: env.count]) for env in parts]
        for name in ("observation", "reward", "terminated", "truncated", "after"):
            assert getattr(one, name).equal(torch.cat([getattr(step, name) for step in two])), name
        ended += int((one.terminated | one.truncated).sum())
    assert ended > 20 and len(begins[0].unique(dim=0)) > 30


@pytest.mark.parametrize("options", OURS, ids=NAMES)
def test_a_resumed_environment_goes_on_bit_for_bit(options):
    env = options.build(37, 3, 5)
    begin = env.reset()
    for t in range(30):
        env.step(actions(t))
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    file.seek(0)
    other = options.build(37, 3, 5)
    other.load_state_dict(torch.load(file, weights_only=True))
    for t in range(30, 140):
        assert same(env.step(actions(t)), other.step(actions(t)))
    assert env.reset().equal(begin)  # all over again
    assert not options.build(37, 3, 6).reset().equal(begin)


def test_names_and_options_of_the_table():
    assert component("env", "multigoal4", horizon=1000, reward_scale=0.1).options == MultiGoal4(0.1, 1000)
    with pytest.raises(ConfigError, match="env.map: expected .*two_walls"):
        component("env", "gridworld", map="two_wall")
    with pytest.raises(ConfigError, match="did you mean 'pointmaze'"):
        component("env", "point_maze")
