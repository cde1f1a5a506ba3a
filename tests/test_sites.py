"""Sites: counts and parameters per unit of the published models against the table, and what a pattern selects."""

from collections import Counter

import pytest
import torch
from torch import nn

from flows.blueprint import blueprints, on_meta
from pruning.sites import Sites, find_groups, total_params
from pruning.surgery import cut, lines
from studio.config import build
from studio.errors import ConfigError
from tests.prunable import CONFIGS, network

# by kind, the modules and the units of them all
COUNTS = {
    "sdxl": {"heads": (140, 2600), "neurons": (70, 332_800), "blocks": (70, 70)},
    # 19 double blocks with ff and ff_context, 38 single blocks with one MLP: 76 MLPs, 57 attention modules of 24 heads
    "flux-dev": {
        "heads": (57, 57 * 24),
        "neurons": (76, 76 * 12288),
        "modulation": (76, 38 * 18432 + 38 * 9216),
        "blocks": (57, 57),
    },
    # 24 joint and 13 dual attentions; the last block has no ff_context, and its text modulation is of another class;
    # 13 dual blocks modulate with nine parts of 1536, not six
    "sd35-medium": {
        "heads": (37, 37 * 24),
        "neurons": (47, 47 * 6144),
        "modulation": (47, (47 * 6 + 13 * 3) * 1536),
        "blocks": (23, 23),
    },
    "sd35-large": {"heads": (38, 38 * 38), "neurons": (75, 75 * 9728), "modulation": (75, 75 * 6 * 2432), "blocks": (37, 37)},
}
# pruning.md, section 12
UNIT_PARAMS = {
    ("sdxl", "down_blocks.2.attentions.0.transformer_blocks.0.attn1"): 327_680,
    ("sdxl", "down_blocks.1.attentions.0.transformer_blocks.0.attn1"): 163_840,
    ("sdxl", "mid_block.attentions.0.transformer_blocks.9.attn2"): 425_984,
    ("sdxl", "up_blocks.1.attentions.2.transformer_blocks.1.attn2"): 2 * 64 * (640 + 2048),
    ("sdxl", "down_blocks.2.attentions.0.transformer_blocks.0.ff"): 3_842,
    ("sdxl", "down_blocks.1.attentions.0.transformer_blocks.0.ff"): 1_922,
    ("sd35-medium", "transformer_blocks.0.attn"): 786_816,
    ("sd35-medium", "transformer_blocks.0.attn2"): 4 * 1536 * 64 + 3 * 64,
    ("sd35-medium", "transformer_blocks.23.attn"): 786_816 - 1536 * 64,  # the last block has no to_add_out
    ("sd35-medium", "transformer_blocks.0.ff"): 3_073,
    ("sd35-medium", "transformer_blocks.0.norm1.linear"): 1_537,
    ("sd35-large", "transformer_blocks.0.attn"): 1_245_568,
    ("sd35-large", "transformer_blocks.0.ff_context"): 4_865,
    ("flux-dev", "transformer_blocks.0.attn"): 3_146_496,
    ("flux-dev", "transformer_blocks.0.ff"): 6_145,
    ("flux-dev", "single_transformer_blocks.37.attn"): 1_573_248,
    ("flux-dev", "single_transformer_blocks.0.mlp"): 6_145,
    ("flux-dev", "single_transformer_blocks.0.norm.linear"): 3_073,
}


@pytest.fixture(scope="module", params=COUNTS)
def published(request):
    made = on_meta(blueprints()[request.param])
    return request.param, find_groups(made), sum(p.numel() for p in made.parameters())


def test_counts_and_parameters_of_the_published_models(published):
    name, groups, _ = published
    modules = Counter(group.kind for group in groups)
    units = Counter({kind: sum(group.units for group in groups if group.kind == kind) for kind in modules})
    assert {kind: (modules[kind], units[kind]) for kind in modules} == COUNTS[name]
    found = {group.name: group.params for group in groups}
    for (model, site), params in UNIT_PARAMS.items():
        if model == name:
            assert found[site] == params, site


def test_prunable_shares_of_the_published_models(published):
    name, groups, params = published
    billions = [total_params([g for g in groups if g.kind == kind]) / 1e9 for kind in ("heads", "neurons", "modulation")]
    shares = {  # of SD3.5-L the table counts 76 MLPs, modulations and text outputs; the last block lacks one each
        "sdxl": (0.9552, 1.2295, 0),
        "flux-dev": (2.87, 5.74, 3.23),
        "sd35-large": (1.80, 3.60 * 75 / 76, 2.70 * 75 / 76),
    }
    if name in shares:
        assert billions == pytest.approx(shares[name], abs=1e-4 if name == "sdxl" else 8e-3)
    if name == "sdxl":
        assert params == pytest.approx(2567.46e6, abs=1e4) and sum(billions) * 1e9 / params == pytest.approx(0.85, abs=2e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_spans_lie_in_their_layers_and_no_two_groups_share_a_line(name):
    made = network(name)
    modules = dict(made.named_modules())
    taken = {}
    for group in find_groups(made):
        for side, spans in enumerate((group.producers, group.consumers)):
            for span in spans:
                layer = modules[span.module]
                width = layer.in_features if side else layer.out_features
                at = lines(span, torch.arange(group.units)).tolist()
                assert min(at) >= 0 and max(at) < width, (group.name, span)
                seen = taken.setdefault((span.module, side), set())
                assert not seen & set(at), (group.name, span)
                seen |= set(at)
    # every producer and consumer is used in full, but for the gate rows and offsets that other groups have
    for (layer, side), at in taken.items():
        assert len(at) == (modules[layer].in_features if side else modules[layer].out_features), layer


def test_sites_of_small_networks():
    def sizes(name):
        return {group.name: (group.kind, group.units) for group in find_groups(network(name))}

    sd35 = sizes("sd35")
    assert sd35["transformer_blocks.0.attn2"] == ("heads", 4) and "transformer_blocks.1.attn2" not in sd35
    assert sd35["transformer_blocks.0.norm1.linear"] == ("modulation", 9 * 32)
    assert "transformer_blocks.3.norm1_context.linear" not in sd35 and "transformer_blocks.3" not in sd35
    assert "transformer_blocks.3.ff_context" not in sd35 and "transformer_blocks.3.ff" in sd35
    flux = find_groups(network("flux"))
    mlp = next(group for group in flux if group.name == "single_transformer_blocks.1.mlp")
    assert mlp.consumers[0].offset == 48 and mlp.units == 192 and mlp.block == "single_transformer_blocks.1"
    dit = sizes("dit")
    assert dit["transformer_blocks.1.attn1"] == ("heads", 3) and dit["transformer_blocks.1.ff"] == ("neurons", 96)
    assert "transformer_blocks.1" in dit and "transformer_blocks.0" not in dit  # the output layer uses its embedder
    assert sizes("sd2")["mid_block.attentions.0.transformer_blocks.0.attn2"] == ("heads", 4)
    # two query heads to a key-value head: rows of q and columns of o for both
    llama = {group.name: group for group in find_groups(network("llama"))}
    heads = llama["model.layers.0.self_attn"]
    assert heads.units == 4 and [span.size for span in heads.producers] == [8, 4, 4] and heads.consumers[0].size == 8
    assert heads.params == (2 * 2 + 2) * 4 * 32 + 8 + 4 + 4 and llama["model.layers.0.mlp"].params == 3 * 32 + 2
    assert sizes("qwen3")["model.layers.2.self_attn"] == ("heads", 4)


def test_the_block_of_a_group():
    blocks = {group.name: group.block for group in find_groups(network("sdxl"))}
    assert blocks["up_blocks.0.attentions.2.transformer_blocks.1.ff"] == "up_blocks.0.attentions.2.transformer_blocks.1"
    assert blocks["mid_block.attentions.0.transformer_blocks.2"] == "mid_block.attentions.0.transformer_blocks.2"
    assert {group.block for group in find_groups(network("qwen2"))} == {f"model.layers.{i}" for i in range(3)}


def test_what_a_head_cannot_leave_alone_is_no_site():
    from diffusers.models.attention_processor import Attention

    across = Attention(query_dim=16, heads=2, kv_heads=2, dim_head=8, qk_norm="rms_norm_across_heads")
    grouped = Attention(query_dim=16, heads=4, kv_heads=2, dim_head=4)
    pixels = Attention(query_dim=16, heads=2, dim_head=8, norm_num_groups=4, residual_connection=True)
    fused = Attention(query_dim=16, heads=2, dim_head=8)
    fused.fuse_projections()
    assert find_groups(nn.ModuleList([across, grouped, pixels, fused])) == []
    assert len(find_groups(nn.ModuleList([Attention(query_dim=16, heads=2, dim_head=8)]))) == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cut_network_lists_what_is_left(name):
    made = network(name)
    groups = [group for group in find_groups(made) if group.kind != "blocks"]
    kept = {group.name: torch.arange(group.units // 2) for group in groups}
    kept[groups[-1].name] = torch.arange(0)
    heads = [group for group in groups if group.kind == "heads"]
    kept[heads[0].name] = torch.arange(0)
    cut(made, groups, kept)
    left = {group.name: group.units for group in find_groups(made) if group.kind != "blocks"}
    wanted = {g.name: len(kept[g.name]) for g in groups if g.kind != "modulation" and len(kept[g.name])}
    assert left == wanted


def test_patterns():
    made = network("flux")
    single = Sites(kinds=["heads", "modulation"], include=r"^single", exclude=r"\.0\.").of(made)
    assert [group.name for group in single] == [
        f"single_transformer_blocks.{i}.{part}" for i in (1, 2) for part in ("norm.linear", "attn")
    ]
    assert {group.kind for group in Sites().of(made)} == {"heads", "neurons"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kinds": []}, "sites.kinds: expected some of heads, neurons, modulation, blocks, got none"),
        ({"kinds": ["head"]}, "kinds"),
        ({"include": "attn("}, r"sites.include: expected a regular expression, got 'attn\('"),
        ({"exclude": "*"}, r"sites.exclude: expected a regular expression, got '\*'"),
    ],
    ids=["no kinds", "unknown kind", "broken include", "broken exclude"],
)
def test_a_wrong_choice_is_refused_as_it_is_read(given, message):
    with pytest.raises(ConfigError, match=message):
        build(Sites, given)


def test_a_pattern_without_sites_names_some():
    with pytest.raises(ConfigError) as error:
        Sites(include="transformer_block.0.attn").of(network("sd3"))
    assert "expected a pattern that matches some site" in str(error.value)
    assert "did you mean 'transformer_blocks.0.attn'" in str(error.value) and "transformer_blocks.0.ff" in str(error.value)
    with pytest.raises(ConfigError, match="got kinds modulation, include '.\\*'"):
        Sites(kinds=["modulation"]).of(network("sdxl"))


def test_a_network_without_sites_is_refused():
    with pytest.raises(ConfigError, match="expected a network with prunable sites, got a Sequential without any"):
        Sites().of(nn.Sequential(nn.Linear(2, 2)))
