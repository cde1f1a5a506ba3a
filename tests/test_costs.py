"""Operations per unit: by hand, and dense less what was removed against the count of the cut network."""

import pytest
import torch

from flows.trace import trace
from pruning.costs import unit_flops
from pruning.sites import find_groups
from pruning.surgery import cut, removed
from tests.prunable import CONFIGS, forward, network
from tests.test_surgery import none, some


def costs(name, kinds):
    made = network(name)
    groups = [group for group in find_groups(made) if group.kind in kinds]
    return made, groups, unit_flops(groups, made, forward(name, made))


KINDS = [("heads",), ("neurons",), ("modulation",), ("blocks",), ("heads", "neurons", "modulation")]
MODULATED = ("sd3", "sd35", "flux", "dit")
PAIRS = [(name, kinds) for name in CONFIGS for kinds in KINDS if "modulation" not in kinds[:1] or name in MODULATED]


@pytest.mark.parametrize("kept_of", [some, none])
@pytest.mark.parametrize(("name", "kinds"), PAIRS, ids=lambda value: value if isinstance(value, str) else "+".join(value))
def test_the_cut_network_costs_what_is_left(name, kinds, kept_of):
    made, groups, flops = costs(name, kinds)
    kept = kept_of(groups)
    dense = trace(made, forward(name, made)).flops
    cut(made, groups, kept)
    saved = sum(flops[group.name] * len(removed(group, kept[group.name])) for group in groups)
    assert saved > 0
    assert trace(made, forward(name, made)).flops == dense - saved


def test_by_hand():
    _, _, sd3 = costs("sd35", ("heads", "neurons", "modulation"))
    # two pictures of 16 patches with 5 text tokens, width 32: q, k, v and output of 8 rows each; 21 tokens see 21
    joint = 2 * (4 * 8 * 32) * 2 * 21 + 4 * 2 * 21 * 21 * 8
    assert sd3["transformer_blocks.0.attn"] == joint
    assert sd3["transformer_blocks.0.attn2"] == 2 * (4 * 8 * 32) * 2 * 16 + 4 * 2 * 16 * 16 * 8  # the picture alone
    assert sd3["transformer_blocks.3.attn"] == joint - 2 * 8 * 32 * 2 * 5  # no text output
    assert (
        sd3["transformer_blocks.0.ff"] == 2 * (32 + 32) * 2 * 16 and sd3["transformer_blocks.0.ff_context"] == 2 * (32 + 32) * 2 * 5
    )
    assert sd3["transformer_blocks.0.norm1.linear"] == 2 * 32 * 2  # one row a picture
    _, _, unet = costs("sdxl", ("heads", "neurons"))
    # 4x4 pixels of 16 channels in 4 heads; the text's 5 tokens of width 12 are keys and values
    block = "mid_block.attentions.0.transformer_blocks.0"
    assert unet[f"{block}.attn2"] == 2 * (2 * 4 * 16 * 2 * 16 + 2 * 4 * 12 * 2 * 5) + 4 * 2 * 16 * 5 * 4
    assert unet[f"{block}.ff"] == 2 * 3 * 16 * 2 * 16
    _, _, flux = costs("flux", ("heads", "neurons"))
    # 12 patches and 5 text tokens in one sequence
    assert flux["single_transformer_blocks.0.mlp"] == 2 * (48 + 48) * 2 * 17
    assert flux["single_transformer_blocks.0.attn"] == 2 * (4 * 16 * 48) * 2 * 17 + 4 * 2 * 17 * 17 * 16
    _, _, llama = costs("llama", ("heads",))
    # a key-value head with its two query heads: rows of q 8, k 4, v 4, columns of the output 8; 7 tokens
    assert llama["model.layers.0.self_attn"] == 2 * (8 + 4 + 4 + 8) * 32 * 2 * 7 + 4 * 2 * 7 * 7 * 8


@pytest.mark.parametrize("name", ["sd35", "flux", "sdxl", "dit"])
def test_the_meta_device_counts_the_same(name):
    made, groups, flops = costs(name, ("heads", "neurons", "blocks"))
    made.to("meta")
    assert unit_flops(groups, made, forward(name, made)) == flops


def test_several_calls_add_up_and_no_hook_stays():
    made, groups, once = costs("sdxl", ("heads", "neurons", "blocks"))
    run = forward("sdxl", made)
    twice = unit_flops(groups, made, lambda: (run(), run()))
    assert twice == {name: 2 * flops for name, flops in once.items()}
    with pytest.raises(RuntimeError, match="stopped"):
        unit_flops(groups, made, lambda: (_ for _ in ()).throw(RuntimeError("stopped")))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.modules())


def test_a_block_costs_more_than_its_units():
    _, groups, flops = costs("flux", ("heads", "neurons", "modulation", "blocks"))
    for group in groups:
        if group.kind == "blocks":
            inner = sum(flops[g.name] * g.units for g in groups if g.block == group.name and g is not group)
            assert flops[group.name] == pytest.approx(inner, rel=1e-6)  # all its layers are sites
    assert torch.tensor(list(flops.values())).min() > 0
