"""Depth: after blocks were left out, a stock class built from the changed config loads the weights and answers the same."""

import pytest
import torch

from pruning.depth import depth_config
from pruning.sites import find_groups
from pruning.surgery import cut
from studio.errors import ConfigError
from tests.prunable import CONFIGS, DECODERS, forward, network

BLOCKS = "down_blocks.1.attentions.{}.transformer_blocks.{}"
MIDDLE = "mid_block.attentions.0.transformer_blocks.{}"
UP = "up_blocks.0.attentions.{}.transformer_blocks.{}"
CASES = {
    "sd3": (["transformer_blocks.1"], {"num_layers": 3}),
    "sd35": (["transformer_blocks.0", "transformer_blocks.1"], {"num_layers": 2, "dual_attention_layers": [0]}),
    "flux": (
        ["transformer_blocks.0", "single_transformer_blocks.0", "single_transformer_blocks.2"],
        {"num_layers": 1, "num_single_layers": 1},
    ),
    "sdxl": (
        [BLOCKS.format(0, 2), MIDDLE.format(0), BLOCKS.format(1, 0), BLOCKS.format(1, 1), UP.format(1, 1)],
        # transformers of the way down have 2 and 1 blocks left, the middle 2; of the way up 3, 2, 3
        {"transformer_layers_per_block": [1, [2, 1]], "reverse_transformer_layers_per_block": [[3, 2, 3], 1]},
    ),
    "sd2": (
        ["down_blocks.0.attentions.1.transformer_blocks.0", "mid_block.attentions.0.transformer_blocks.1"],
        # the last block of the way down has no transformer: its depth is the middle's alone
        {"transformer_layers_per_block": [[2, 1], 1], "reverse_transformer_layers_per_block": [1, 2]},
    ),
    "dit": (["transformer_blocks.1"], {"num_layers": 2}),
    "llama": (["model.layers.0", "model.layers.2"], {"num_hidden_layers": 1}),
    "qwen2": (["model.layers.0"], {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}),
    "qwen3": (["model.layers.1"], {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}),
}


def shortened(name, removed):
    made = network(name)
    groups = find_groups(made)
    changes = depth_config(made, removed)
    cut(made, groups, {block: torch.arange(0) for block in removed})
    assert depth_config(made, removed) == changes  # the same after the cut
    return made, changes


def rebuilt(name, made, changes):
    if name in DECODERS:
        return type(made)(type(made.config)(**made.config.to_dict() | changes)).eval()
    fields = {key: value for key, value in made.config.items() if key != "_use_default_values"}
    return type(made).from_config(fields | changes).eval()


@pytest.mark.parametrize("name", CASES)
def test_a_stock_class_loads_the_shorter_network(name, tmp_path):
    removed, wanted = CASES[name]
    made, changes = shortened(name, removed)
    assert changes == wanted
    stock = rebuilt(name, made, changes)
    stock.load_state_dict(made.state_dict(), strict=True)
    with torch.no_grad():
        answer = forward(name, made)()
        assert torch.equal(forward(name, stock)(), answer)
        if name in DECODERS:
            made.config.update(changes)
        else:
            made.register_to_config(**changes)
        made.save_pretrained(tmp_path)
        assert torch.equal(forward(name, type(made).from_pretrained(tmp_path).eval())(), answer)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_block_that_may_go_can_go_alone(name):
    made = network(name)
    blocks = [group.name for group in find_groups(made) if group.kind == "blocks"]
    assert depth_config(made, []) == {}
    if name == "sdxl":  # the middle goes with the first of the last way down
        blocks = [block for block in blocks if block.startswith("up")]
    for block in blocks[:4]:
        short, changes = shortened(name, [block])
        stock = rebuilt(name, short, changes)
        stock.load_state_dict(short.state_dict(), strict=True)
        with torch.no_grad():
            assert torch.equal(forward(name, stock)(), forward(name, short)())


def test_a_second_cut_starts_from_the_config_that_was_saved():
    made, changes = shortened("sdxl", CASES["sdxl"][0])
    stock = rebuilt("sdxl", made, changes)
    again = depth_config(stock, [UP.format(1, 0)])
    assert again == changes | {"reverse_transformer_layers_per_block": [[3, 1, 3], 1]}


def test_a_u_net_with_other_counts_of_resnets():
    made = network("sdxl", layers_per_block=[1, 2])
    changes = depth_config(made, [UP.format(2, 1)])
    assert changes["reverse_transformer_layers_per_block"] == [[3, 3, 2], 1]
    cut(made, find_groups(made), {UP.format(2, 1): torch.arange(0)})
    rebuilt("sdxl", made, changes).load_state_dict(made.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("name", "removed", "message"),
    [
        (
            "sdxl",
            [UP.format(1, k) for k in range(3)],
            "at least one block left in up_blocks.0.attentions.1.transformer_blocks, got all 3",
        ),
        (
            "sdxl",
            [MIDDLE.format(0)],
            r"mid_block.attentions.0 as in down_blocks.1.attentions.0, got 2 and 3 left. Remove as many of both",
        ),
        ("llama", [f"model.layers.{k}" for k in range(3)], "Keep one of model.layers.0, model.layers.1, model.layers.2"),
        ("sd3", ["transformer_blocks.3"], "transformer_blocks.3 ends the text stream"),
        ("dit", ["transformer_blocks.0"], "shares the embedder of transformer_blocks.0"),
        ("flux", ["transformer_blocks.2", "block.1"], r"such as transformer_blocks.0, .* got block.1, transformer_blocks.2"),
    ],
    ids=["empty transformer", "middle alone", "no layer left", "last of SD3", "first of DiT", "unknown names"],
)
def test_what_stock_classes_cannot_say_is_refused(name, removed, message):
    with pytest.raises(ConfigError, match=message):
        depth_config(network(name), removed)
