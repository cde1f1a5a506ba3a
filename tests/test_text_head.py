"""Log-likelihood, entropy and other temperatures of chosen tokens: by hand, against autograd, and in bounded memory."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import saved_for_backward

from studio.core.tempered import TEMPERATURES
from studio.text.head import Said, token_logp


def drawn(rows=7, width=5, words=11, dtype=torch.float64):
    own = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(shape, generator=own, dtype=dtype) for shape in ((rows, width), (words, width), (words,)))
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), torch.randint(words, (rows,), generator=own)


def plain(logits, token):
    """The definitions, for autograd."""

    def at(temperature):
        return (logits / temperature).log_softmax(-1).gather(1, token[:, None])[:, 0]

    p = logits.softmax(-1)
    return Said(at(1.0), -(p * p.log()).sum(-1), torch.stack([at(t) for t in TEMPERATURES], -1))


def scalar(said, pull):
    """Σ pull · what is said; a pull of 0 leaves no gradient at all."""
    answers = torch.cat([said.logp[:, None], said.entropy[:, None], said.tempered], 1)
    return (pull * answers)[:, pull.any(0)].sum()


def test_by_hand():
    # logits 2, 1, 0: log Σ e = 2.407606; entropy = 2.407606 - (2·.665241 + .244728) = .832395; reference, DCPO: q at 1.2
    said = token_logp(torch.tensor([[2.0, 1.0, 0.0]] * 3), torch.eye(3), torch.tensor([0, 1, 2]), tempered=True)
    assert said.logp.tolist() == pytest.approx([-0.407606, -1.407606, -2.407606], abs=1e-6)
    assert said.entropy.tolist() == pytest.approx([0.832395] * 3, abs=1e-6)
    assert (said.tempered[:, TEMPERATURES.index(1.2)] - said.logp).exp().tolist() == pytest.approx(
        [0.925925, 1.093851, 1.292232], abs=1e-6
    )


def test_uniform_logits_have_the_entropy_of_the_vocabulary():
    said = token_logp(torch.zeros(2, 3), torch.randn(9, 3), torch.tensor([0, 8]))
    assert said.entropy.tolist() == pytest.approx([math.log(9)] * 2, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("budget", [1, 33, 10_000], ids=["token by token", "three at a time", "at once"])
def test_values_and_gradients_are_those_of_the_plain_computation(budget, temperature):
    hidden, weight, bias, token = drawn()
    pull = torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = scalar(plain((hidden @ weight.T + bias) / temperature, token), pull)
    found = scalar(token_logp(hidden, weight, token, bias, temperature=temperature, tempered=True, budget=budget), pull)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)
    same_gradients(found, expected, (hidden, weight, bias))


ASKED = {"logp": [1, 0, 0, 0, 0], "entropy": [0, 1, 0, 0, 0], "logp and entropy": [1, 1, 0, 0, 0], "tempered": [0, 0, 1, 1, 1]}


@pytest.mark.parametrize("asked", ASKED)
def test_answers_that_no_gradient_asks_for_change_none(asked):
    hidden, weight, bias, token = drawn(dtype=torch.float32)
    pull = torch.tensor([ASKED[asked]]) * torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    said = token_logp(hidden, weight, token, bias, temperature=0.7, tempered="tempered" in asked, budget=33)
    if said.tempered is None:
        said = said._replace(tempered=torch.zeros(7, 3))
    same_gradients(scalar(said, pull), scalar(plain((hidden @ weight.T + bias) / 0.7, token), pull), (hidden, weight, bias))


def same_gradients(found, expected, leaves):
    for one, other in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-5)


def test_large_logits_keep_the_precision_of_float32():
    own = torch.Generator().manual_seed(0)
    logits, token = (1000 + 2 * torch.randn(20, 300, generator=own)).requires_grad_(), torch.arange(20)
    said, expected = token_logp(logits, torch.eye(300), token, tempered=True), plain(logits.double(), token)
    for name in ("logp", "entropy", "tempered"):
        torch.testing.assert_close(getattr(said, name).double(), getattr(expected, name), atol=0, rtol=2e-6)
    same_gradients(said.logp.sum() + said.entropy.sum(), expected.logp.sum() + expected.entropy.sum(), (logits,))


def test_a_frozen_head_gives_gradients_to_the_hidden_states_alone():
    hidden, weight, _, token = drawn(dtype=torch.float32)
    weight = weight.detach()
    token_logp(hidden, weight, token).logp.sum().backward()
    expected = torch.autograd.grad((hidden @ weight.T).log_softmax(-1).gather(1, token[:, None]).sum(), hidden)[0]
    torch.testing.assert_close(hidden.grad, expected, atol=1e-6, rtol=1e-5)
    assert weight.grad is None


def test_nothing_of_the_size_of_the_vocabulary_is_kept_for_the_backward_pass():
    words, rows, width = 5000, 64, 4
    network = torch.nn.Linear(width, words, bias=False)
    hidden = torch.randn(rows, width, requires_grad=True)
    with saved_for_backward(network) as kept:
        said = token_logp(hidden, network.weight, torch.zeros(rows, dtype=torch.long))
    assert sum(kept.values()) <= 4 * rows * (width + 5) < 4 * rows * words / 100
    said.logp.sum().backward()
    assert hidden.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_larger_than_two_pieces_or_the_weights(dtype):
    words, width = 5000, 4
    hidden, weight = (torch.randn(n, width, dtype=dtype, requires_grad=True) for n in (64, words))
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            sizes.extend(x.untyped_storage().nbytes() for x in tree_leaves(made) if isinstance(x, torch.Tensor))
            return made

    with Watch():
        said = token_logp(hidden, weight, torch.zeros(64, dtype=torch.long), budget=3 * words, tempered=True)
        (said.logp.sum() + said.entropy.sum() + said.tempered.sum()).backward()
    assert max(sizes) == 4 * 2 * 3 * words  # float32, logits and as much room, three tokens


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights"])
def test_in_bfloat16_the_gradients_are_those_of_float32_up_to_its_precision(autocast):
    hidden, weight, _, token = drawn(rows=32, dtype=torch.float32)
    said = token_logp(hidden, weight, token)
    values = torch.cat([said.logp, said.entropy]).detach()
    (said.logp + 0.5 * said.entropy).sum().backward()
    expected, hidden.grad, weight.grad = (hidden.grad, weight.grad), None, None
    kept = (hidden, weight) if autocast else [x.bfloat16() for x in (hidden, weight)]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        said = token_logp(*kept, token)
    assert (torch.cat([said.logp, said.entropy]) - values).norm() <= 0.01 * values.norm() and said.logp.dtype == torch.float32
    (said.logp + 0.5 * said.entropy).sum().backward()
    for leaf, gradient in zip((hidden, weight), expected, strict=True):
        assert (leaf.grad - gradient).norm() <= 0.02 * gradient.norm()
