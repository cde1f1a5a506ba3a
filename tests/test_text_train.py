"""A language model in the loop: the same loop, folder, resume and processes as every other policy."""

from pathlib import Path

import pytest
import torch
from ranks import train_two
from safetensors.torch import load_file
from test_resume import assert_same
from test_text_engine import standing
from test_train import fresh
from text_runs import STEPS, text_recipe

from studio.errors import ConfigError
from studio.run import Run, RunView, request
from studio.seeds import row_seed
from studio.shards import FOLDER
from studio.state import WEIGHTS
from studio.train import train

KINDS = {
    "full": (),
    # rows end at different times: ranks make different numbers of forwards
    "lora": ("policy.model.train=lora", "policy.sampling={limit: 10, stop: ['1', '2', '3', '4', '5']}"),
    "critic": ("algorithm={name: ppo, kl: 0.01}", "policy.critic=true"),
}
TWICE = ("lora", "critic")  # of the kinds, those that are also run in two processes, with and without shards


def outcome(folder: Path):
    """Metrics without times, all that the checkpoint holds, and the last evaluation's texts."""
    view = RunView.open(folder)
    metrics = [{k: v for k, v in r.items() if k != "t" and not k.startswith("time/")} for r in view.metrics().records]
    state = torch.load(view.checkpoint() / "state.pt", weights_only=True)
    last = view.sample_steps()[-1]
    texts = [record["text"] for record in view.samples(last)]
    return metrics, state, texts


def groups(folder: Path):
    """What was kept of the last rollout that was watched, without the folder's own name."""
    view = RunView.open(folder)
    return [{**record, "file": record["file"].name} for record in view.groups(view.group_steps()[-1])]


def weights(folder: Path):
    return torch.load(RunView.open(folder).checkpoint() / "state.pt", weights_only=True)["trainable"]


def largest_difference(a: Path, b: Path) -> float:
    return max((x - y).abs().max().item() for x, y in zip(weights(a), weights(b), strict=True))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    text_recipe(folder)  # the model and the prompts
    return folder


@pytest.fixture(scope="module")
def whole(root):
    """One uninterrupted run of each kind."""
    for kind, settings in KINDS.items():
        recipe = text_recipe(root, *settings)
        assert train(recipe, fresh(recipe, root, f"{kind}-whole")) == "finished"
    return root


def test_a_run_leaves_metrics_texts_and_scores(whole):
    view = RunView.open(whole / "full-whole")
    records = view.metrics().records
    assert {"ratio/largest", "reward/mean", "loss/total", "kl/old"} <= records[1].keys()
    assert records[1]["sample/length"] <= 10 and 0 < records[1]["sample/entropy"] <= 3 and 0 <= records[1]["sample/cut"] <= 1
    assert 0 < records[1]["sample/top_mass"] <= 1 and records[1]["sample/warning"] == 0
    assert not any("@" in name for name in records[1])
    assert {"reward/eval.function", "sample/characters", "sample/repetition"} <= records[0].keys()
    first = view.samples(0)
    assert len(first) == 2 and first[0]["prompt"].endswith("=") and 0 <= first[0]["rewards"]["function"] <= 1
    assert first[0]["file"].read_text() == first[0]["text"]


def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(whole):
    recipe = text_recipe(whole)
    run = fresh(recipe, whole, "again")
    assert train(recipe, run, report=lambda step, _: request(run.folder, "stop") if step == 2 else None) == "stopped"
    torch.manual_seed(123)
    assert train(recipe, Run.resume(run.folder)) == "finished"
    assert_same(outcome(whole / "again"), outcome(whole / "full-whole"))
    assert_same(groups(whole / "again"), groups(whole / "full-whole"))


def test_the_first_groups_are_kept_with_the_credit_of_every_token(whole):
    view, records = RunView.open(whole / "full-whole"), groups(whole / "full-whole")
    assert view.group_steps() == [2]  # watched every 2 of 3 steps; before the first there is no rollout
    assert [(r["group"], r["sample_id"]) for r in records] == [(g, f"s0{k}") for g in (0, 1) for k in range(4)]
    for g in (0, 1):
        own = [r for r in records if r["group"] == g]
        assert len({r["prompt_id"] for r in own}) == 1
        reward = torch.tensor([r["reward"] for r in own], dtype=torch.float64)
        by_hand = (reward - reward.mean()) / (reward.std() + 1e-4)  # GRPO
        assert [r["advantage"] for r in own] == pytest.approx(by_hand.tolist(), abs=2e-3)
    for record in records:
        pieces, advantage, entropy, logp = zip(*record["tokens"], strict=True)
        text = "".join(pieces)
        assert text.removesuffix("<end>").replace("<pad>", "") == record["text"]
        assert record["length"] == len(pieces) and (len(pieces) == 10 or text.endswith("<end>"))
        assert set(advantage) == {record["advantage"]}
        assert all(0 < h <= torch.tensor(18.0).log() + 1e-3 for h in entropy) and all(x < 0 for x in logp)  # 18 tokens
        assert record["rewards"]["function"] == pytest.approx(record["reward"])


def test_keeping_groups_changes_nothing_that_is_learned(whole):
    recipe = text_recipe(whole, "watch.groups=0")
    assert train(recipe, fresh(recipe, whole, "none")) == "finished"
    assert RunView.open(whole / "none").group_steps() == []
    assert_same(outcome(whole / "none"), outcome(whole / "full-whole"))


def test_in_parts_it_learns_the_same(whole):
    recipe = text_recipe(whole, "train.gradient_accumulation_steps=4")
    assert train(recipe, fresh(recipe, whole, "parts")) == "finished"
    assert largest_difference(whole / "parts", whole / "full-whole") <= 2e-6


@pytest.fixture(scope="module")
def two(whole):
    """The same in two processes, with and without shards, and one whose server refuses a row of the second in the last step."""
    with standing("vllm") as (server, engine):
        server.refused = {row_seed(0, f"{STEPS - 1}/3", 1)}
        settings = {"lora": (*KINDS["lora"], "watch.every=100"), "critic": KINDS["critic"]}  # one of them also watches
        settings |= {f"{kind}-shards": own for kind, own in settings.items()}
        settings["served"] = (f"policy.engine.url={engine.url}", "train.checkpointing_steps=100", "watch.every=100")
        recipes = {name: f"shared.text_recipe(Path(sys.argv[1]), *{own!r})" for name, own in settings.items()}
        train_two("test_text_train", recipes, whole, sharded=[f"{kind}-shards" for kind in TWICE], fails=["served"])
    return whole


@pytest.mark.parametrize("kind", TWICE)
def test_two_processes_learn_the_same(two, kind):
    assert largest_difference(two / kind, two / f"{kind}-whole") <= 2e-6


def test_two_processes_keep_the_same_groups(two):
    """Rank 0 holds the first two of four groups."""
    apart, together = groups(two / "critic"), groups(two / "critic-whole")
    assert [r["text"] for r in apart] == [r["text"] for r in together]
    assert [r["advantage"] for r in apart] == pytest.approx([r["advantage"] for r in together], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", TWICE)
def test_shards_learn_the_same(two, kind):
    one, many = (RunView.open(two / name) for name in (f"{kind}-whole", f"{kind}-shards"))
    files = {path.name for path in (one.checkpoint() / WEIGHTS).glob("*.safetensors")}
    assert len(files) == 1 + (kind == "critic") and len(list((many.checkpoint() / FOLDER).glob("*.distcp"))) == 2
    for name in files:
        a, b = (load_file(view.checkpoint() / WEIGHTS / name) for view in (one, many))
        assert a.keys() == b.keys() and max((a[key] - b[key]).abs().max().item() for key in a) <= 5e-6, name
    for a, b in zip(one.metrics().records[1:], many.metrics().records[1:], strict=True):
        for name in ("reward/mean", "loss/grad_norm", "sample/length"):
            assert b[name] == pytest.approx(a[name], rel=1e-4), name


def test_a_server_that_fails_one_rank_ends_all_with_a_checkpoint(two):
    """Rank 0, which writes, learns it where rollouts are gathered; both save the last complete step."""
    view = RunView.open(two / "served")
    assert view.checkpoints() == [STEPS - 1] and view.metrics().records[-1]["step"] == STEPS - 1
    said = [(two / "served" / f"failed-{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and said[0].startswith("4 engine: expected an answer") and ": 400 out of luck" in said[0]


def test_a_prompt_longer_than_the_context_is_refused_before_sampling(root):
    long = root / "long.jsonl"
    long.write_text('{"prompt": "' + "1" * 130 + '="}\n')
    recipe = text_recipe(root, f"prompts.train={long}")
    with pytest.raises(ConfigError, match="expected at most 128 tokens of prompt and completion.*got 131 \\+ sampling.limit = 10"):
        train(recipe, fresh(recipe, root, "long"))


def test_a_chat_needs_a_template(root):
    recipe = text_recipe(root, "policy.sampling.chat=on")
    with pytest.raises(ConfigError, match="chat template for 'on', got one without"):
        train(recipe, fresh(recipe, root, "chat"))
    assert recipe.train.steps == STEPS


def test_a_reward_with_a_memory_learns_after_every_iteration_and_resumes(root):
    """HAPO's reward: nothing is known at first; afterwards the shortest right answer of a problem counts, in a resumed run too."""
    judge = "correct: function, options: {target: 'text_runs:digits', reads: text}, threshold: 0.6"
    recipe = text_recipe(root, f"rewards={{history_length: {{weight: 1.0, {judge}}}}}", "watch.every=100")
    whole, run = fresh(recipe, root, "memory"), fresh(recipe, root, "memory-again")
    assert train(recipe, whole) == "finished"
    stop = train(recipe, run, report=lambda step, _: request(run.folder, "stop") if step == 2 else None)
    assert stop == "stopped" and train(recipe, Run.resume(run.folder)) == "finished"
    state = torch.load(RunView.open(whole.folder).checkpoint() / "state.pt", weights_only=True)["parts"]["rewards.history_length"]
    assert state["kept"] and all(1 <= length <= 10 for length, _ in state["kept"].values())
    assert_same(outcome(run.folder), outcome(whole.folder))
