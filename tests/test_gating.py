"""Gates: a gate of one changes nothing, half gates are by hand, and they hold under checkpointing and with gradients."""

import pytest
import torch

from pruning.gating import column_gate, gated
from pruning.sites import Span, find_groups
from tests.prunable import CONFIGS, DECODERS, forward, network


def gates_of(groups, value=None, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return {g.name: torch.full((g.units,), value) if value is not None else torch.rand(g.units, generator=draws) for g in groups}


@pytest.mark.parametrize("name", CONFIGS)
def test_gates_of_one_change_nothing_and_the_hooks_go(name):
    made = network(name)
    run = forward(name, made)
    with torch.no_grad():
        plain = run()
        groups = find_groups(made)
        with gated(made, groups, gates_of(groups, 1.0)):
            assert (run() - plain).abs().max() <= 1e-6
        with gated(made, groups, gates_of(groups, 0.5)):
            assert (run() - plain).abs().max() > 1e-2
        assert torch.equal(run(), plain)
    hooks = [m for m in made.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_columns_by_hand():
    # a FLUX single block's output layer: two heads of 2, then three neurons at an offset, then nothing that is gated
    spans = [(Span("out", 1, 4), "mlp"), (Span("out", 2), "attn")]
    gates = {"attn": torch.tensor([0.5, 0.0]), "mlp": torch.tensor([1.0, 0.25, 0.75])}
    assert column_gate(spans, gates, 8).tolist() == [0.5, 0.5, 0, 0, 1, 0.25, 0.75, 1]
    assert column_gate(spans[:1], gates, 8).tolist() == [1, 1, 1, 1, 1, 0.25, 0.75, 1]


def test_modulation_by_hand():
    made = network("flux")
    group = next(g for g in find_groups(made) if g.name == "single_transformer_blocks.0.norm.linear")
    gates, fill = gates_of([group]), {group.name: torch.randn(group.units, generator=torch.Generator().manual_seed(1))}
    layer, x = made.get_submodule(group.name), torch.randn(2, 48)
    with torch.no_grad():
        plain, gate = layer(x), gates[group.name]
        with gated(made, [group], gates):
            torch.testing.assert_close(layer(x), gate * plain)
        with gated(made, [group], gates, fill):
            torch.testing.assert_close(layer(x), gate * plain + (1 - gate) * fill[group.name])


@pytest.mark.parametrize("name", ["sd35", "flux", "sdxl", "dit", "qwen3"])
def test_a_block_half_open_answers_with_the_mean(name):
    made = network(name)
    run = forward(name, made)
    group = [g for g in find_groups(made) if g.kind == "blocks"][-1]
    seen = {}

    def record(module, args, kwargs, answer):
        seen["given"], seen["plain"] = {**kwargs, **dict(enumerate(args))}, answer

    block = made.get_submodule(group.name)
    hook = block.register_forward_hook(record, with_kwargs=True)
    with torch.no_grad(), gated(made, [group], {group.name: torch.tensor([0.25])}):
        after = block.register_forward_hook(lambda module, inputs, answer: seen.update(mixed=answer))
        run()
    hook.remove()
    after.remove()
    several = isinstance(seen["plain"], tuple)
    given = seen["given"]
    hidden = given.get("hidden_states", given.get(0))
    streams = (given["encoder_hidden_states"], hidden) if several else (hidden,)
    for old, new, mixed in zip(
        streams, seen["plain"] if several else (seen["plain"],), seen["mixed"] if several else (seen["mixed"],), strict=True
    ):
        torch.testing.assert_close(mixed, 0.25 * new + 0.75 * old)


@pytest.mark.parametrize("name", CONFIGS)
def test_checkpointing_gives_the_same_answer_and_gradient(name):
    """The gates are read anew in the recompute; every group gets a gradient, which a finite difference confirms."""
    made = network(name)
    groups = find_groups(made)
    run = forward(name, made)
    made.requires_grad_(False)

    def gradients():
        gates = {key: value.requires_grad_() for key, value in gates_of(groups).items()}
        with gated(made, groups, gates):
            answer = run()
            answer.square().mean().backward()
        return answer.detach(), {key: value.grad for key, value in gates.items()}

    plain, wanted = gradients()
    calls = []
    handle = made.get_submodule(groups[-1].consumers[0].module).register_forward_pre_hook(lambda *_: calls.append(1))
    if name in DECODERS:
        made.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        made.enable_gradient_checkpointing()
    made.train()
    answer, found = gradients()
    handle.remove()
    assert len(calls) == 2  # it was recomputed
    assert (answer - plain).abs().max() <= 1e-6
    for key, gradient in wanted.items():
        assert gradient.abs().sum() > 0, key
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-7)


def test_a_gradient_is_the_slope():
    made = network("flux").double()
    run = forward("flux", made)
    groups = [g for g in find_groups(made) if g.kind == "heads"]
    gates = {key: value.double().requires_grad_() for key, value in gates_of(groups).items()}
    with gated(made, groups, gates):
        run().square().mean().backward()
    name, step = groups[-1].name, 1e-5
    with torch.no_grad():
        ends = []
        for sign in (-1, 1):
            moved = {key: value.detach().clone() for key, value in gates.items()}
            moved[name][1] += sign * step
            with gated(made, groups, moved):
                ends.append(run().square().mean())
    assert float((ends[1] - ends[0]) / (2 * step)) == pytest.approx(float(gates[name].grad[1]), rel=1e-4)


def test_gates_hold_on_layers_with_adapters():
    """What an adapter adds to a consumer passes the gate too; a unit's parameters are those of the layer below."""
    from peft import LoraConfig

    made = network("sd35")
    plain = find_groups(made)
    made.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_out.0", "net.2", "norm1.linear"]))
    groups, run = find_groups(made), forward("sd35", made)
    assert [g for g in groups if g.kind != "blocks"] == [g for g in plain if g.kind != "blocks"]
    with torch.no_grad(), gated(made, groups, gates_of(groups)):
        adapted = run()
    made.fuse_lora()
    made.unload_lora()
    with torch.no_grad(), gated(made, groups, gates_of(groups)):
        assert (run() - adapted).abs().max() <= 1e-5


def test_gates_take_the_dtype_of_the_activations():
    made = network("sd35").to(torch.bfloat16)
    run = forward("sd35", made)
    groups = find_groups(made)
    with torch.no_grad(), gated(made, groups, gates_of(groups)):
        assert run().dtype == torch.bfloat16
