"""The small masked language model: its loss by hand, and a folder that the recipe loads."""

import torch
from torch import nn
from typer.testing import CliRunner

from studio.cli import app
from studio.text.masked_network import MaskedNetwork, build_masked, load_masked
from studio.text.masked_pretrain import Pretrain, build_model, complete, masked_loss, masked_tokenizer
from studio.text.masked_recipe import MaskedText, Unmasking
from studio.text.recipe import Language


class Listening(nn.Module):
    """Says log 1/2 of every token it is asked about, and remembers the question."""

    mask = 9

    def forward(self, tokens, seen, rows, columns, chosen):
        self.asked = (tokens, seen, rows, columns, chosen)
        return torch.full((len(rows),), 0.5).log()


def test_the_loss_asks_for_answers_and_for_the_ends_that_fill_them_up():
    """Prompts 5 6 | 5, answers 1 2 0 | 3 0 with end 0, width 4; both kinds of rows are met over many draws."""
    tokens = torch.tensor([[5, 6, 1, 2, 0], [5, 3, 0, 7, 7]])
    labels = torch.tensor([[-100, -100, 1, 2, 0], [-100, 3, 0, -100, -100]])
    torch.manual_seed(0)
    network, met = Listening(), set()
    for _ in range(60):
        loss = masked_loss(network, tokens, labels, 4, 0)  # type: ignore[arg-type]
        torch.testing.assert_close(loss, torch.tensor(2.0).log())
        shown, seen, rows, columns, chosen = network.asked
        assert seen.sum(1).tolist() == [6, 5] and shown[0, :2].tolist() == [5, 6] and shown[1, 0] == 5
        assert (shown[rows, columns] == 9).all()
        for row, start, answer in ((0, 2, [1, 2, 0, 0]), (1, 1, [3, 0, 0, 0])):
            own, last = columns[rows == row] - start, shown[row, start + len(answer) - 1]
            assert len(own) >= 1 and [answer[at] for at in own] == chosen[rows == row].tolist()
            met.add((row, "whole" if own.max() == 3 or last == 0 else "alone"))
            if last == 9 and own.max() < 3:  # what is not asked about after the end stays masked
                assert row == 0 or shown[1, 3] == 9
    assert len(met) == 4


def test_a_folder_that_the_recipe_loads(tmp_path):
    small = {"tokens": 3000, "batch": 8, "width": 16, "layers": 1, "heads": 2, "steps": 1, "test": 1}
    line = ["pretrain", "masked-text", "--out", str(tmp_path), *(f"{k}={v}" for k, v in small.items())]
    done = CliRunner().invoke(app, line, catch_exceptions=False)
    assert done.exit_code == 0 and "loss" in done.stderr and "sorting: level 1 " in done.stderr and "done in" in done.stderr
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: fill-mask" in card and "`studio pretrain masked-text`" in card and "| addition | 1 | 1, 2, 2, 3 |" in card
    lm, tokenizer = load_masked(Language(id=str(tmp_path)))
    again = masked_tokenizer()
    assert tokenizer.mask_token_id == again.mask_token_id and tokenizer("12+3=")["input_ids"] == again("12+3=")["input_ids"]
    policy = build_masked(Language(id=str(tmp_path), device="cpu"), Unmasking(limit=64, temperature=1), 2, MaskedText.provides, 0)
    asked = ["7+8=", "sort 3 1 2:"]
    network = MaskedNetwork(lm, tokenizer.mask_token_id)
    done = policy._write([torch.tensor(tokenizer(text)["input_ids"]) for text in asked], [0, 1], 1.0)
    usual = Pretrain(width=16, layers=1, heads=2)
    assert policy.reader.texts(done) == complete(network, tokenizer, usual, asked)  # type: ignore[arg-type]


def test_the_default_model_is_small():
    with torch.device("meta"):
        model = build_model(masked_tokenizer(), Pretrain())
    assert sum(p.numel() for p in model.parameters()) < 1.5e6
    assert set(model.config.layer_types or ()) == {"full_attention"}
