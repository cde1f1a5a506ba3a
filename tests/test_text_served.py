"""A run whose completions are written by a server: the same loop, weights handed over, a dead server ends cleanly."""

import pytest
from test_text_engine import KINDS, standing
from test_train import fresh
from text_runs import STEPS, text_recipe

from studio.errors import ConfigError, RewardError
from studio.launch import work
from studio.run import RunView
from studio.train import train


@KINDS
@pytest.mark.parametrize("how", ["full", "lora"])
def test_a_run_learns_from_completions_of_a_server(kind, how, tmp_path):
    with standing(kind) as (server, engine):
        served = f"policy.engine={{url: '{engine.url}', kind: {kind}, delay: 0.01}}"
        recipe = text_recipe(tmp_path, f"policy.model.train={how}", served, "train.gradient_accumulation_steps=2")
        run = fresh(recipe, tmp_path)
        assert train(recipe, run) == "finished"
        records = [record for record in RunView.open(run.folder).metrics().records if "ratio/largest" in record]
        assert len(records) == STEPS and all(record["loss/grad_norm"] > 0 for record in records)
        written = [path for path, _ in server.asked if "gener" in path or "compl" in path]
        assert len(written) == STEPS * 16  # a request for every row
    dead = fresh(recipe, tmp_path, "dead")
    with pytest.raises(RewardError, match="Start the server again, then continue the run with --resume"):
        work(dead, text_recipe(tmp_path, served), progress="none")
    status = RunView.open(dead.folder).status
    assert (status["state"], status["exit_code"]) == ("failed", 4) and engine.url in status["reason"]


def test_tools_need_completions_written_here(tmp_path):
    with pytest.raises(ConfigError, match="expected none with an engine"):
        text_recipe(tmp_path, "policy.engine={url: 'http://127.0.0.1:1'}", "policy.sampling.tools={}")
