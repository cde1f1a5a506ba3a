"""Attention kernels: tried by one call, refused or replaced with a reason, and never believed when they answer nonsense."""

import pytest
import torch

import flows.attention
from flows.attention import blank_condition, set_attention, try_kernel
from flows.load import Model, load_backbone
from studio.errors import MissingError

SIZES = {"tiny-sd3": 16, "tiny-flux": 32, "tiny-sdxl": 16}


def loaded(name, **options):
    return load_backbone(Model(random=name, resolution=SIZES[name], device="cpu", text_length=6, **options))


def forward(backbone):
    x = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    return backbone.velocity(x, torch.tensor([0.5]), blank_condition(backbone.network, 1, 3))


@pytest.mark.parametrize("name", SIZES)
def test_native_is_the_choice_on_a_cpu(name):
    assert loaded(name).attention == loaded(name, attention="native").attention == "native"


@pytest.mark.parametrize("wanted", ["native", "auto"])
def test_native_wins_over_the_environment_and_over_an_earlier_model(wanted, monkeypatch):
    """DIFFUSERS_ATTN_BACKEND, or another model's kernel, is what a network uses that was not told."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    other = AttentionBackendName._NATIVE_MATH
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", other)
    monkeypatch.setitem(_AttentionBackendRegistry._backends, other, None)  # a call would fail
    backbone = loaded("tiny-flux", attention=wanted)
    assert backbone.attention == "native" and forward(backbone).isfinite().all()


@pytest.mark.parametrize("kernel", ["flash", "xformers"])
@pytest.mark.parametrize("name", SIZES)
def test_a_kernel_that_does_not_work_here_is_a_missing_error(name, kernel):
    with pytest.raises(MissingError, match=f"recipe.model.attention: expected {kernel} to answer .* model.attention=native"):
        loaded(name, attention=kernel)


def test_after_a_failed_try_the_network_answers_as_before(capsys):
    backbone = loaded("tiny-flux")
    before = forward(backbone)
    assert try_kernel(backbone.network, "xformers", lambda: forward(backbone))
    assert torch.equal(forward(backbone), before)


def test_auto_says_once_why_it_stays_native(monkeypatch, capsys):
    backbone = loaded("tiny-flux")
    monkeypatch.setattr(flows.attention, "_on_gpu", lambda network: True)
    for _ in range(2):
        assert set_attention(backbone.network, "auto", lambda: forward(backbone)) == "native"
    assert capsys.readouterr().err.count("attention: native (flash did not work: ") == 1


def test_a_kernel_that_answers_nonsense_is_not_used(monkeypatch):
    backbone, answers = loaded("tiny-flux"), [torch.ones(3), torch.full((3,), 2.0)]
    monkeypatch.setattr(flows.attention, "_switch", lambda network, kernel: None)
    assert "differ from native by 1" in try_kernel(backbone.network, "flash", lambda: answers.pop(0))
    answers = [torch.ones(3), torch.full((3,), torch.nan)]
    assert "differ from native by nan" in try_kernel(backbone.network, "flash", lambda: answers.pop(0))
    answers = [torch.ones(3), torch.full((3,), 1.01)]
    assert try_kernel(backbone.network, "flash", lambda: answers.pop(0)) is None
