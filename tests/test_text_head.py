"""Log-likelihood, entropy and other temperatures of chosen tokens: by hand, against autograd, and in bounded memory."""

import math

import pytest
import torch
from toys import saved_for_backward

from studio.core.tempered import TEMPERATURES
from studio.text.head import said_of, token_logp


def drawn(rows=7, width=5, words=11, dtype=torch.float64):
    own = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(shape, generator=own, dtype=dtype) for shape in ((rows, width), (words, width), (words,)))
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), torch.randint(words, (rows,), generator=own)


def test_by_hand():
    # logits 2, 1, 0: log Σ e = 2.407606; entropy = 2.407606 - (2·.665241 + .244728) = .832395; reference, DCPO: q at 1.2
    said = said_of(torch.tensor([[2.0, 1.0, 0.0]] * 3), torch.tensor([0, 1, 2]), tempered=True)
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

    def scalar(said):
        return (pull[:, 0] * said.logp + pull[:, 1] * said.entropy).sum() + (pull[:, 2:] * said.tempered).sum()

    plain = scalar(said_of((hidden @ weight.T + bias) / temperature, token, tempered=True))
    expected = torch.autograd.grad(plain, (hidden, weight, bias))
    said = token_logp(hidden, weight, token, bias, temperature=temperature, tempered=True, budget=budget)
    found = torch.autograd.grad(scalar(said), (hidden, weight, bias))
    torch.testing.assert_close(scalar(said), plain, atol=1e-5, rtol=1e-6)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-5)


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
    assert sum(kept.values()) <= 4 * rows * (width + 4) < 4 * rows * words / 100
    said.logp.sum().backward()
    assert hidden.grad is not None


def test_in_bfloat16_the_gradients_are_those_of_float32_up_to_its_precision():
    hidden, weight, _, token = drawn(rows=32, dtype=torch.float32)
    token_logp(hidden, weight, token).logp.sum().backward()
    expected, hidden.grad, weight.grad = hidden.grad, None, None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        said = token_logp(hidden, weight, token)
    assert said.logp.dtype == torch.float32
    said.logp.sum().backward()
    assert (hidden.grad - expected).norm() <= 0.02 * expected.norm()
