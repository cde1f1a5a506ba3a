"""Simulators with the interface of rsl_rl: ends and cuts, states that are overwritten, and what they cannot do."""

import pytest
import torch

from flows.control.fault import EnvironmentFault
from flows.control.simulators import IsaacLab, Playground
from studio.errors import ConfigError, ShapeError


class Cart:
    """x += a in copies that end above 2 and are cut after three steps; hands out the same tensors again and again."""

    num_actions = 1
    form, late, shape = "tensor", True, (-1,)

    def __init__(self, num_envs, seed):
        self.num_envs, self.seed, self.resets, self.closed = num_envs, seed, 0, False
        self.x, self.k, self.reward = torch.zeros(num_envs, 1), torch.zeros(num_envs), torch.zeros(num_envs)

    def get_observations(self):
        return {
            "tensor": self.x,
            "pair": (self.x, {}),
            "policy": {"critic": 9 * self.x, "policy": self.x},
            "state": {"state": self.x},
        }[self.form]

    def step(self, actions):
        self.given = actions
        self.x += actions
        self.k += 1
        self.reward[:] = self.x[:, 0]
        dead, late = self.x[:, 0] > 2, self.k >= 3
        over = dead | late
        self.x[over], self.k[over] = 0, 0
        extras = {"time_outs": late} if self.late else {}
        return self.get_observations(), self.reward.reshape(self.shape), over.long().reshape(self.shape), extras

    def reset(self):
        self.resets += 1
        self.x[:], self.k[:] = 0, 0
        return self.get_observations()

    def close(self):
        self.closed = True


def variant(**given):
    return lambda num_envs, seed: type("Variant", (Cart,), given)(num_envs, seed)


tensor, pair, policy, state = (variant(form=form) for form in ("tensor", "pair", "policy", "state"))
column = variant(shape=(-1, 1))
endless = variant(late=False)
pixels = variant(form="tensor", get_observations=lambda self: torch.zeros(self.num_envs, 2, 2))
nameless = variant(get_observations=lambda self: {"camera": self.x})
doubled = variant(shape=(1, -1), step=lambda self, a: (self.x, torch.zeros(6), torch.zeros(3), {}))


def few(num_envs, seed):
    return Cart(num_envs - 1, seed)


def once(num_envs, seed):
    """Without reset and close, as some wrappers."""
    cart = Cart(num_envs, seed)
    return type("Bare", (), {name: getattr(cart, name) for name in ("num_envs", "num_actions", "get_observations", "step")})()


def built(name, count=3, first=0, seed=0):
    return IsaacLab(f"{__name__}:{name}").build(count, first, seed)


@pytest.mark.parametrize("name", ["tensor", "pair", "policy", "state", "column"])
def test_ends_cuts_and_the_state_after_them(name):
    env = built(name)
    now = env.reset()
    steps = [env.step(torch.tensor([[1.5], [0.5], [-1.0]])) for _ in range(3)]
    # x = 1.5, then 3 > 2: over and 0; 0.5, 1.0, 1.5 and cut; -1, -2, -3 and cut
    assert now.tolist() == [[0.0]] * 3
    assert [step.reward.tolist() for step in steps] == [[1.5, 0.5, -1.0], [3.0, 1.0, -2.0], [1.5, 1.5, -3.0]]
    assert [step.terminated.tolist() for step in steps] == [[False] * 3, [True, False, False], [False] * 3]
    assert [step.truncated.tolist() for step in steps] == [[False] * 3, [False] * 3, [False, True, True]]
    assert steps[2].observation.tolist() == [[1.5], [0.0], [0.0]]
    assert steps[2].after.tolist() == [[1.5], [1.0], [-2.0]]  # before the cut, never of the new episode
    assert steps[0].observation.tolist() == steps[0].after.tolist() == [[1.5], [0.5], [-1.0]]  # not overwritten since


def test_without_time_outs_every_done_is_an_end():
    env = built("endless")
    env.reset()
    steps = [env.step(torch.full((3, 1), 0.1)) for _ in range(3)]
    assert steps[2].terminated.all() and not steps[2].truncated.any()


def test_actions_are_clipped_to_the_bound_of_the_recipe():
    wide, narrow = built("tensor"), Playground(f"{__name__}:tensor").build(3, 0, 0)
    far = torch.full((3, 1), -7.0)
    for env, space, given in ((wide, torch.inf, -7.0), (narrow, 1.0, -1.0)):
        env.step(far)
        assert env.space.high == (space,) and env.space.low == (-space,) and env.env.given.tolist() == [[given]] * 3


def test_a_resume_begins_anew_and_the_check_says_so():
    env = built("tensor")
    env.reset()
    assert env.env.resets == 0  # a simulator begins when it is made
    env.step(torch.ones(3, 1))
    env.load_state_dict(env.state_dict())
    assert env.env.resets == 1 and env.reset().tolist() == [[0.0]] * 3 and env.env.resets == 1 and not env.exact
    warnings = IsaacLab(f"{__name__}:tensor").check()
    assert any("resumed run starts all its episodes anew" in text for text in warnings)
    assert any("value of the state before the last action" in text for text in warnings)
    env.close()
    assert env.env.closed
    bare = built("once")
    bare.step(torch.ones(3, 1))
    bare.load_state_dict({})
    bare.close()


def test_processes_get_seeds_of_their_own():
    seeds = [built("tensor", first=first, seed=seed).env.seed for first, seed in ((0, 0), (3, 0), (0, 1), (0, 0))]
    assert seeds[0] == seeds[3] and len(set(seeds)) == 3 and max(seeds) < 2**31


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("test_simulators", "recipe.env.target: expected module:function, got 'test_simulators'"),
        ("a b:c", "expected module:function, got 'a b:c'"),
        ("no_such_module:make", "expected a module that can be imported, got 'no_such_module'"),
        (f"{__name__}:nothing", "expected a function of .*test_simulators, got 'nothing'"),
        (f"{__name__}:few", "to make 3 environments, got 2"),
        (f"{__name__}:nameless", "expected observations under policy or state, got camera"),
    ],
)
def test_a_target_that_gives_no_environment_is_refused(target, words):
    with pytest.raises(ConfigError, match=words):
        Playground(target).build(3, 0, 0)


def test_other_shapes_and_numbers_that_are_none_are_refused():
    with pytest.raises(ShapeError, match=r"observations have shape \[3, 2, 2\], expected \[N, n\] with N = 3"):
        built("pixels")
    with pytest.raises(ShapeError, match=r"rewards have shape \[6\], expected \[N\] = \[3\]"):
        built("doubled").step(torch.zeros(3, 1))
    env = built("tensor", first=4)
    with pytest.raises(EnvironmentFault, match="copy 5: expected finite observations, got nan"):
        env.step(torch.tensor([[0.0], [torch.nan], [0.0]]))
