"""Removal: a cut network computes what gates of 0 and 1 do, for every class; so does the zeroed one; and it is smaller."""

import copy

import pytest
import torch

from pruning.gating import gated
from pruning.pruned_model import ScatterLinear
from pruning.sites import find_groups, total_params
from pruning.surgery import cut, drop_blocks, lines, removed, zero
from tests.prunable import CONFIGS, DECODERS, forward, network

INNER = ("heads", "neurons", "modulation")


def some(groups, seed=0, share=0.5):
    """Random kept units, at least one of each group; blocks stay or go."""
    draws = torch.Generator().manual_seed(seed)
    kept = {}
    for group in groups:
        stays = torch.rand(group.units, generator=draws) < share
        if group.kind != "blocks" and not stays.any():
            stays[torch.randint(group.units, (1,), generator=draws)] = True
        kept[group.name] = stays.nonzero().flatten()
    return kept


def none(groups):
    return {group.name: torch.arange(0) for group in groups}


def hard(groups, kept):
    return {g.name: torch.zeros(g.units).index_fill(0, kept[g.name], 1) for g in groups if g.name in kept}


def means(groups, seed=3):
    draws = torch.Generator().manual_seed(seed)
    return {g.name: torch.randn(g.units, generator=draws) for g in groups if g.kind == "modulation"}


def errors(name, groups_of, kept_of, fill_of=None, **changes):
    """Largest difference of the gated answer to the dense, the cut and the zeroed one; parameters that went and should."""
    made = network(name, **changes)
    groups = groups_of(made)
    kept = kept_of(groups)
    fill = None if fill_of is None else fill_of(groups)
    sliced, zeroed = copy.deepcopy(made), copy.deepcopy(made)
    with torch.no_grad():
        dense = forward(name, made)()
        with gated(made, groups, hard(groups, kept), fill):
            wanted = forward(name, made)()
        cut(sliced, groups, kept, fill)
        difference = {"cut": float((forward(name, sliced)() - wanted).abs().max())}
        if all(group.kind != "blocks" for group in groups):
            zero(zeroed, groups, kept, fill)
            difference["zero"] = float((forward(name, zeroed)() - wanted).abs().max())
    assert (dense - wanted).abs().max() > 1e-2 and wanted.isfinite().all()
    went = sum(p.numel() for p in made.parameters()) - sum(p.numel() for p in sliced.parameters())
    assert went == sum(group.params * len(removed(group, kept[group.name])) for group in groups)
    return difference


def of_kinds(*kinds, contains=""):
    return lambda made: [g for g in find_groups(made) if g.kind in kinds and contains in g.name]


def close(difference):
    assert max(difference.values()) <= 1e-5, difference


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_heads_and_neurons(name, seed):
    close(errors(name, of_kinds("heads", "neurons"), lambda groups: some(groups, seed)))


@pytest.mark.parametrize("kind", ["heads", "neurons"])
@pytest.mark.parametrize("name", CONFIGS)
def test_emptied_groups(name, kind):
    close(errors(name, of_kinds(kind), none))


@pytest.mark.parametrize("name", CONFIGS)
def test_everything_emptied(name):
    close(errors(name, of_kinds("heads", "neurons"), none))


@pytest.mark.parametrize("filled", [False, True], ids=["zeros", "constants"])
@pytest.mark.parametrize("name", ["sd3", "sd35", "flux", "dit"])
def test_modulation(name, filled):
    close(errors(name, of_kinds("modulation"), some, means if filled else None))
    close(errors(name, of_kinds("modulation"), none, means if filled else None))


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks(name):
    close(errors(name, of_kinds("blocks"), some))


@pytest.mark.parametrize("name", CONFIGS)
def test_all_kinds_within_the_blocks_that_stay(name):
    def groups_of(made):
        found = find_groups(made)
        gone = [group for group in found if group.kind == "blocks"][-1]
        return [gone, *(group for group in found if group.kind in INNER and group.block != gone.name)]

    def kept_of(groups):
        return some(groups) | {groups[0].name: torch.arange(0)}

    close(errors(name, groups_of, kept_of, means))


@pytest.mark.parametrize("attention", ["some", "none"])
@pytest.mark.parametrize("mlp", ["some", "none"])
def test_a_flux_single_block_loses_heads_and_neurons_together(attention, mlp):
    groups_of = of_kinds("heads", "neurons", contains="single_transformer_blocks.1")

    def kept_of(groups):
        chosen = {"some": some, "none": none}
        return {
            **chosen[attention]([g for g in groups if g.kind == "heads"]),
            **chosen[mlp]([g for g in groups if g.kind == "neurons"]),
        }

    close(errors("flux", groups_of, kept_of))


def test_an_emptied_layer_answers_with_its_bias():
    sd3, llama = network("sd35"), network("llama")
    groups = [g for g in find_groups(sd3) if g.name.startswith("transformer_blocks.0.") and g.kind in ("heads", "neurons")]
    cut(sd3, groups, none(groups))
    block = sd3.transformer_blocks[0]
    x, text = torch.randn(2, 5, 32), torch.randn(2, 3, 32)
    image, context = block.attn(hidden_states=x, encoder_hidden_states=text)
    assert torch.equal(image, block.attn.to_out[0].bias.expand(2, 5, 32))
    assert torch.equal(context, block.attn.to_add_out.bias.expand(2, 3, 32))
    assert torch.equal(block.attn2(hidden_states=x), block.attn2.to_out[0].bias.expand(2, 5, 32))
    assert torch.equal(block.ff(x), block.ff.net[2].bias.expand(2, 5, 32))
    groups = [g for g in find_groups(llama) if g.kind in ("heads", "neurons")]
    cut(llama, groups, none(groups))
    layer = llama.model.layers[1]
    assert torch.equal(layer.self_attn(x)[0], layer.self_attn.o_proj.bias.expand(2, 5, 32))
    assert torch.equal(layer.mlp(x), layer.mlp.down_proj.bias.expand(2, 5, 32))


def test_widths_are_restated():
    made = network("sd35")
    groups = of_kinds("heads", "neurons", contains="transformer_blocks.0.")(made)
    cut(made, groups, {g.name: torch.arange(3) for g in groups})
    attn = made.transformer_blocks[0].attn
    assert (attn.heads, attn.inner_dim, attn.inner_kv_dim, attn.sliceable_head_dim, attn.query_dim) == (3, 24, 24, 3, 32)
    assert (attn.to_q.out_features, attn.to_out[0].in_features, attn.add_v_proj.out_features) == (24, 24, 24)
    flux = network("flux")
    groups = of_kinds("heads", "neurons", contains="single_transformer_blocks.0")(flux)
    cut(flux, groups, {g.name: torch.arange(2 if g.kind == "heads" else 5) for g in groups})
    block = flux.single_transformer_blocks[0]
    assert (block.attn.heads, block.attn.inner_dim, block.mlp_hidden_dim) == (2, 32, 5)
    assert block.proj_out._tp_packed_row_blocks == [32, 5] and block.proj_out.in_features == 37
    qwen = network("qwen3")
    groups = of_kinds("neurons")(qwen)
    cut(qwen, groups, some(groups))
    assert [layer.mlp.intermediate_size for layer in qwen.model.layers] == [
        layer.mlp.up_proj.out_features for layer in qwen.model.layers
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cut_network_holds_no_old_storage_and_only_its_own(name):
    made = network(name)
    before = {p.untyped_storage()._cdata: p.numel() for p in made.parameters()}
    held = list(made.parameters())  # keep the addresses taken
    groups = of_kinds(*INNER)(made)
    cut(made, groups, some(groups), means(groups))
    touched = {span.module for group in groups for span in (*group.producers, *group.consumers)}
    for module in touched:
        for tensor in (*made.get_submodule(module).parameters(), *made.get_submodule(module).buffers()):
            assert tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes, module
            assert not tensor.requires_grad or tensor.is_leaf
    readers = {span.module for group in groups for span in group.consumers}
    for module in touched:
        assert made.get_submodule(module).weight.untyped_storage()._cdata not in before
    assert readers and held


def test_training_state_is_kept():
    made = network("flux")
    made.requires_grad_(False)
    made.transformer_blocks[0].attn.to_q.requires_grad_(True)
    groups = of_kinds(*INNER)(made)
    cut(made, groups, some(groups))
    assert [name for name, p in made.named_parameters() if p.requires_grad] == [
        "transformer_blocks.0.attn.to_q.weight",
        "transformer_blocks.0.attn.to_q.bias",
    ]
    assert isinstance(made.transformer_blocks[0].norm1.linear, ScatterLinear)


def test_only_the_named_groups_are_cut():
    made = network("sdxl")
    groups = find_groups(made)
    before = {name: p.shape for name, p in made.named_parameters()}
    chosen = next(g for g in groups if g.kind == "neurons")
    cut(made, groups, {chosen.name: torch.arange(4)})
    changed = {name for name, p in made.named_parameters() if p.shape != before[name]}
    assert changed == {f"{chosen.name}.{part}" for part in ("net.0.proj.weight", "net.0.proj.bias", "net.2.weight")}
    assert total_params([g for g in find_groups(made) if g.name == chosen.name]) == 4 * chosen.params


def test_a_second_cut_continues_the_first():
    once, twice = network("flux"), network("flux")
    groups = of_kinds("heads", "neurons")(once)
    first = {g.name: torch.arange(1, g.units) for g in groups}
    cut(twice, groups, first)
    again = of_kinds("heads", "neurons")(twice)
    cut(twice, again, {g.name: torch.arange(1, g.units) for g in again})
    cut(once, groups, {g.name: torch.arange(2, g.units) for g in groups})
    with torch.no_grad():
        assert (forward("flux", once)() - forward("flux", twice)()).abs().max() <= 1e-6


def test_lines_by_hand():
    group = next(g for g in find_groups(network("flux")) if g.name == "single_transformer_blocks.0.mlp")
    assert lines(group.consumers[0], torch.tensor([0, 2])).tolist() == [48, 50]
    heads = next(g for g in find_groups(network("llama")) if g.kind == "heads")
    assert lines(heads.producers[0], torch.tensor([1])).tolist() == list(range(8, 16))
    assert removed(heads, torch.tensor([1, 3])).tolist() == [0, 2]


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("what", ["no heads in the first layer", "no first layer", "some of all"])
def test_decoders_generate_with_the_cache_as_without(name, what):
    made = network(name)
    groups = find_groups(made)
    inner = [g for g in groups if g.kind in INNER]
    kept = {
        "no heads in the first layer": {g.name: torch.arange(0) for g in groups if g.name == "model.layers.0.self_attn"},
        "no first layer": {g.name: torch.arange(0) for g in groups if g.name == "model.layers.0"},
        "some of all": some(inner),
    }[what]
    cut(made, groups, kept)
    tokens = torch.randint(2, 24, (2, 4), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        cached = made.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False, use_cache=True)
        plain = made.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain) and cached.shape == (2, 10)


def test_blocks_are_numbered_anew():
    made = network("qwen2")
    drop_blocks(made, ["model.layers.1"])
    assert [layer.self_attn.layer_idx for layer in made.model.layers] == [0, 1]
    assert made.config.layer_types == ["full_attention", "full_attention"]
    assert not any(name.startswith("model.layers.2") for name in made.state_dict())


def test_a_block_is_not_removed_by_zeros():
    made = network("sd3")
    groups = of_kinds("blocks")(made)
    with pytest.raises(ValueError, match="zero: transformer_blocks.0 is a block, which no zero weight removes"):
        zero(made, groups, none(groups))


@pytest.mark.parametrize("act", [cut, zero])
def test_adapters_are_merged_first(act):
    from peft import LoraConfig

    made = network("sd3")
    made.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    groups = of_kinds("heads")(made)
    assert groups[0].units == 4
    with pytest.raises(ValueError, match=r"expected a plain layer at transformer_blocks.0.attn.to_q, got one with an adapter"):
        act(made, groups, some(groups))


def test_emptied_attention_is_gated_in_training_too():
    """Under checkpointing, with gradients: the sliced network's answer stays the gated one's."""
    made = network("sd35")
    groups = of_kinds("heads")(made)
    sliced = copy.deepcopy(made)
    cut(sliced, groups, none(groups))
    for one in (made, sliced):
        one.enable_gradient_checkpointing()
        one.train()
    with gated(made, groups, hard(groups, none(groups))):
        wanted = forward("sd35", made)()
    found = forward("sd35", sliced)()
    found.square().mean().backward()
    assert (found - wanted).abs().max() <= 1e-5 and sliced.transformer_blocks[0].attn.to_out[0].bias.grad.abs().sum() > 0
