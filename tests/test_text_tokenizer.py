"""The character tokenizer and the making of the bundled language model, in the formats that stock transformers loads."""

from __future__ import annotations

import json
from functools import partial
from itertools import islice

import pytest
import torch
from typer.testing import CliRunner

from studio.cli import app
from studio.errors import ConfigError
from studio.text import world
from studio.text.chat import Reader
from studio.text.pretrain import Pretrain, build_model, complete, completion_loss, pretrain, remaining, train
from studio.text.sampling import Sampling
from studio.text.teach import batches, encoded, pass_rates, rate_at
from studio.text.tokenizer import CHARACTERS, END, PAD, SPECIAL, build_tokenizer, save_tokenizer

TINY = dict(tokens=6_000, batch=16, width=16, layers=1, heads=2, test=4, looks=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Saved and loaded the way anyone would."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


# ---- the tokenizer


def test_every_printable_character_is_one_token_and_comes_back(tokenizer):
    text = "".join(CHARACTERS) + " , . ! don't ' s  two  blanks \n#1305"
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text) and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) == len(SPECIAL) + 96 and tokenizer.get_vocab() == build_tokenizer().get_vocab()


def test_pieces_of_tokens_add_up_to_the_text_even_where_a_character_has_several():
    """Bytes as tokens: two make ü, three €; what never becomes a character shows as one that is broken."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bytes_ = Tokenizer(models.BPE({sign: i for i, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    reader = Reader(PreTrainedTokenizerFast(tokenizer_object=bytes_, eos_token="<end>"), Sampling())
    tokens = reader.tokenizer("a ü€").input_ids
    assert reader.pieces(tokens) == ["a", " ", "", "ü", "", "", "€"]
    assert reader.pieces(tokens[:3]) == ["a", " ", "\ufffd"]
    assert reader.pieces([reader.tokenizer.eos_token_id]) == ["<end>"] and reader.pieces([]) == []
    stray = reader.tokenizer("ü").input_ids[1:]
    assert "".join(reader.pieces(stray * 40)).strip("\ufffd") == "" and reader.pieces(stray * 40 + tokens[:1])[-1] == "a"


def test_a_piece_keeps_the_space_that_a_decoder_drops_at_the_beginning():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"▁two": 0, "▁words": 1, "!": 2, "<end>": 3}, unk_token="<end>"))
    words.decoder = decoders.Metaspace()
    reader = Reader(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>"), Sampling())
    assert reader.pieces([0, 1, 2, 0]) == ["two", " words", "!", " two"]


def test_every_problem_is_within_the_alphabet(tokenizer):
    tasks = dict.fromkeys(world.TASKS, 1.0), dict.fromkeys(world.TASKS, world.LEVELS)
    for made in islice(world.problems(0, *tasks), 300):
        text = made.text + made.solution
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids and len(text) < tokenizer.model_max_length
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_other_characters_are_unknown_and_cost_one_token_each(tokenizer):
    assert tokenizer("1é½2").input_ids[1:3] == [tokenizer.unk_token_id] * 2 and len(tokenizer("1é½2").input_ids) == 4


def test_padding_stands_on_the_left_and_an_end_is_one_token(tokenizer):
    rows = tokenizer(["1+2=", "13+2="], padding=True)
    assert rows.input_ids[0][0] == tokenizer.pad_token_id and rows.attention_mask == [[0, 1, 1, 1, 1], [1] * 5]
    assert (tokenizer.pad_token, tokenizer.eos_token) == (PAD, END) and tokenizer.bos_token_id is None
    assert tokenizer(f"#3{END}").input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer(f"#3{END}").input_ids, skip_special_tokens=True) == "#3"


def test_a_chat_is_its_messages_in_a_row(tokenizer):
    chat = [{"role": "system", "content": "Add.\n"}, {"role": "user", "content": "1+2="}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == "Add.\n1+2="
    answered = tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": "#3"}], tokenize=False)
    assert answered == f"Add.\n1+2=#3{END}"


# ---- what is learned from


def test_only_completions_and_their_end_are_learned(tokenizer):
    (made,) = islice(world.problems(0, {"addition": 1.0}, {"addition": (1,)}), 1)
    (longer,) = islice(world.problems(0, {"json": 1.0}, {"json": (3,)}), 1)
    tokens, labels = encoded(tokenizer, [made, longer])
    assert tokenizer.decode(tokens[0][tokens[0] != tokenizer.pad_token_id]) == made.text + made.solution + END
    assert tokenizer.decode(labels[0][labels[0] >= 0]) == made.solution + END
    assert (labels[0][: len(made.text)] == -100).all() and (labels[tokens == tokenizer.pad_token_id] == -100).all()
    assert tokens.shape[1] == len(longer.text + longer.solution) + 1


def test_padding_and_prompts_do_not_change_the_loss(tokenizer):
    torch.manual_seed(0)
    model = build_model(tokenizer, Pretrain(width=16, layers=1, heads=2)).eval()
    some = list(islice(world.problems(0, {"json": 1.0, "addition": 1.0}, {"json": (2,), "addition": (1,)}), 4))
    whole = completion_loss(model, *encoded(tokenizer, some)).item()
    alone = [(completion_loss(model, *encoded(tokenizer, [made])).item(), len(made.solution) + 1) for made in some]
    assert whole == pytest.approx(sum(loss * n for loss, n in alone) / sum(n for _, n in alone), abs=1e-5)


def test_batches_follow_seed_and_weights(tokenizer):
    settings = Pretrain(batch=8)
    first, again, other = (next(batches(tokenizer, s, s.weights))[0] for s in (settings, settings, Pretrain(batch=8, seed=1)))
    assert torch.equal(first, again) and not (first.shape == other.shape and torch.equal(first, other))
    weights = dict.fromkeys(world.TASKS, 0.0) | {"sorting": 1.0}
    stream = batches(tokenizer, settings, weights)
    assert all("sort" in text for text in tokenizer.batch_decode(next(stream)[0]))
    weights |= {"sorting": 0.0, "json": 1.0}
    late = [tokenizer.batch_decode(tokens)[0] for tokens, _ in islice(stream, 40)]
    assert "json" in late[-1], "weights that the caller changes count from then on"


def test_a_task_at_the_ceiling_is_spared():
    settings = Pretrain(weights={"addition": 2.0, "json": 1.0}, ceiling=0.5, spared=0.1)
    assert remaining(settings, {"addition": 0.5, "json": 0.49}) == {"addition": 0.2, "json": 1.0}
    assert remaining(settings, {"addition": 0.4, "json": 0.9}) == {"addition": 2.0, "json": 0.1}, "and taken up again"


def test_it_stops_when_every_task_is_at_the_ceiling(tokenizer):
    said: list[str] = []
    settings = Pretrain(tokens=10**9, batch=4, width=16, layers=1, heads=2, looks=10**6, ceiling=0.0)
    train(build_model(tokenizer, settings), tokenizer, settings, said.append)
    assert len(said) == 1


def test_the_learning_rate_rises_and_falls():
    assert rate_at(0, 0.1) < 0.01 and rate_at(0.1, 0.1) == 1 and rate_at(0.55, 0.1) == pytest.approx(0.5)
    assert rate_at(1, 0.1) == pytest.approx(0, abs=1e-9) and rate_at(2, 0.1) == pytest.approx(0, abs=1e-9)


# ---- the making


def test_it_learns_to_close_brackets(tokenizer):
    """The loss of a tiny model falls well below that of guessing among the six brackets."""
    said: list[str] = []
    settings = Pretrain(tokens=60_000, width=32, layers=2, heads=2, weights={"brackets": 1.0}, levels={"brackets": (1,)}, looks=2)
    torch.manual_seed(0)
    model = build_model(tokenizer, settings)
    train(model, tokenizer, settings, said.append)
    assert len(said) == 2 and "brackets 0." in said[0] and not model.training
    some = list(islice(world.problems(0, {"brackets": 1.0}, {"brackets": (1,)}, test=True), 64))
    assert completion_loss(model, *encoded(tokenizer, some)).item() < 1.2
    rates, again = (pass_rates(partial(complete, model, tokenizer), ["brackets"], 16)["brackets"] for _ in range(2))
    assert rates == again and set(rates) == set(world.LEVELS)


def test_the_written_folder_loads_in_stock_transformers(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = CliRunner().invoke(
        app, ["pretrain", "text", "--out", str(tmp_path / "model"), *(f"{k}={v}" for k, v in TINY.items())], catch_exceptions=False
    )
    assert done.exit_code == 0 and done.stdout.strip().splitlines()[-1] == str(tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".py"))]
    model, tokenizer = (cls.from_pretrained(tmp_path / "model") for cls in (AutoModelForCausalLM, AutoTokenizer))
    assert type(model).__name__ == "LlamaForCausalLM" and model.config.tie_word_embeddings
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    torch.manual_seed(0)
    asked = [made.text for made in islice(world.problems(0, {"addition": 1.0}, {"addition": (1,)}), 3)]
    texts = complete(model, tokenizer, asked)
    torch.manual_seed(1)
    assert len(texts) == 3 and texts != complete(model, tokenizer, asked), "it samples at temperature 1"
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n") and "| addition | 1 | 1, 2, 2, 3 |" in card and "| tokens | 6000 |" in card


def test_the_full_model_is_small():
    model = build_model(build_tokenizer(), Pretrain())
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters <= 2_000_000 and parameters * 4 <= 6e6
    config = json.loads(model.config.to_json_string())
    assert config["model_type"] == "llama" and config["vocab_size"] == 99


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["weights={chess: 1}"], "pretrain.weights: expected tasks of addition.*got chess"),
        (
            ["weights={addition: 1}", "levels={sorting: [1]}"],
            "pretrain.levels: expected levels of every task, got none of addition",
        ),
        (["tokens=0"], "pretrain.tokens"),
    ],
)
def test_settings_that_cannot_be(tmp_path, options, words):
    from studio.config import apply_overrides, build

    with pytest.raises(ConfigError, match=words):
        pretrain(tmp_path, build(Pretrain, apply_overrides({}, options), where="pretrain"), lambda text: None)
    assert not list(tmp_path.iterdir())


def test_only_bundled_worlds_are_made(tmp_path):
    done = CliRunner().invoke(app, ["pretrain", "chess", "--out", str(tmp_path / "x")])
    assert done.exit_code and "expected shapes, text, masked-text, got 'chess'" in str(done.exception or done.output)
