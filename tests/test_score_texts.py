"""`studio score` on a file of texts."""

import json

import pytest
from typer.testing import CliRunner

from studio.cli import app
from studio.errors import ConfigError
from studio.score_texts import read_texts


def test_lines_and_records_are_scored(tmp_path):
    (tmp_path / "graded.py").write_text(
        "import torch\ndef share(samples, prompts):\n"
        "    return torch.tensor([float(t == str(i.get('answer', ''))) for t, i in zip(samples, prompts.info)])\n"
    )
    file = tmp_path / "said.jsonl"
    lines = [{"prompt": "1+1=", "completion": "2", "answer": 2}, {"completion": "3", "answer": 4}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    import sys

    sys.path.insert(0, str(tmp_path))
    done = CliRunner().invoke(app, ["score", "function", str(file), "--json", "target=graded:share", "reads=text"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["mean"]["function"] == 0.5
    assert [row["file"] for row in found["files"]] == ["said.jsonl:1", "said.jsonl:2"]
    plain = tmp_path / "said.txt"
    plain.write_text("one\n\ntwo\n")
    where, texts, prompts = read_texts(plain, "count")
    assert where == ["said.txt:1", "said.txt:3"] and texts == ["one", "two"] and prompts.text == ["count", "count"]


def test_a_broken_line_is_named(tmp_path):
    file = tmp_path / "said.jsonl"
    file.write_text('{"completion": "2"}\n{"prompt": "x"}\n')
    with pytest.raises(ConfigError, match=r"said.jsonl:2: expected a JSON object with 'completion'"):
        read_texts(file, None)


def test_a_reward_of_pictures_does_not_read_texts(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    done = CliRunner().invoke(app, ["score", "jpeg_size", str(tmp_path / "a.txt")])
    assert done.exit_code != 0
