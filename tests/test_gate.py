"""Gates by hand."""

import math

import torch
from toys import batch

from studio.core.gate import EngineCorrection, EveryGate, TopEntropy, informative_groups
from studio.types import Evaluation


def ones(rollout):
    return torch.ones(rollout.mask.shape)


def test_groups_that_agree_do_not_train():
    rollout = batch([[1, 1]] * 5, torch.tensor([1.0, 0, 0.3, 0.3, 0.3]), [4, 4, 1, 1, 1])
    assert informative_groups(rollout, ones(rollout))[:, 0].tolist() == [1, 1, 0, 0, 0]


def test_a_missing_reward_does_not_make_a_group_informative():
    present = torch.tensor([True, True, False])
    rollout = batch([[1]] * 3, torch.tensor([1.0, 1.0, 0.0]), present=present)
    assert informative_groups(rollout, ones(rollout))[:, 0].tolist() == [0, 0, 0]


def test_engine_correction_is_truncated():
    # old - engine = ln 1.5, ln 4 -> 1.5 and the cap
    old = Evaluation(logp=torch.tensor([[math.log(1.5), math.log(4.0)]]))
    rollout = batch([[1, 1]], old=old, engine=torch.zeros(1, 2))
    torch.testing.assert_close(EngineCorrection(2.0)(rollout, ones(rollout)), torch.tensor([[1.5, 2.0]]))
    assert (EngineCorrection()(batch([[1, 1]], old=old), torch.ones(1, 2)) == 1).all()


def test_top_entropy_looks_at_live_decisions_only():
    old = Evaluation(entropy=torch.tensor([[0.1, 0.9, 0.5, 0.3, 7.0]]))
    rollout = batch([[1, 1, 1, 1, 0]], old=old)
    assert TopEntropy(0.5)(rollout, ones(rollout))[0, :4].tolist() == [0, 1, 1, 0]


def test_several_gates_multiply_and_join_their_needs():
    old = Evaluation(logp=torch.zeros(2, 1), entropy=torch.tensor([[0.1], [0.2]]))
    rollout = batch([[1]] * 2, torch.tensor([0.0, 1.0]), old=old, engine=torch.full((2, 1), -math.log(1.5)))
    both = EveryGate((TopEntropy(0.5), EngineCorrection()))
    torch.testing.assert_close(both(rollout, ones(rollout)), torch.tensor([[0.0], [1.5]]))
    assert both.needs == {"entropy"}
