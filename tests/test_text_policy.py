"""The language model as a policy: what is recorded while writing is what a replay finds, whatever the batch."""

from dataclasses import replace

import pytest
import torch
from tiny_lm import DIGITS, tiny_lm, tiny_policy
from toys import saved_for_backward, updated

from studio.algorithms.grpo import GRPO
from studio.core import GroupRelative, Objective, assign_credit, plain_ratio, policy_loss
from studio.errors import ConfigError
from studio.text.generate import generate
from studio.text.load import attach_lora
from studio.text.recipe import Adapters, Language
from studio.text.tokens import pack, trace_of
from studio.types import Prompts


def prompts_of(*texts):
    return Prompts(list(texts), list(texts), [{} for _ in texts])


def written(policy, texts=("1+1=", "1+1=", "12+345=", "9="), seeds=(3, 4, 5, 6), **options):
    rows = prompts_of(*texts)
    group = torch.tensor([texts.index(text) for text in texts])
    return policy.sample(rows, group=group, seeds=list(seeds), step=0, **options)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_first_replay_finds_the_recorded_likelihoods(lora, temperature):
    policy = tiny_policy(lora=lora, temperature=temperature, critic=True)
    policy.want(frozenset({"tempered"}))
    rollout = written(policy)
    assert rollout.mask.sum() > 20
    for rows in (slice(None), slice(1, 3)):  # alone, and with others that are longer
        part = rollout.at(rows)
        again = policy.evaluate(part)
        for name in ("logp", "entropy", "tempered", "value"):
            new, old = getattr(again, name)[part.mask], getattr(part.old, name)[part.mask]
            torch.testing.assert_close(new, old, atol=5e-6, rtol=1e-5, msg=name)


def test_a_recorded_likelihood_is_that_of_the_plain_model():
    policy = tiny_policy(temperature=0.7)
    rollout = written(policy)
    for row, text in enumerate(rollout.prompts.text):
        length = int(rollout.mask[row].sum())
        prompt = policy.tokenizer(text, return_tensors="pt")["input_ids"][0]
        whole = torch.cat([prompt, rollout.trace.token[row, :length]])
        logits = policy.model.lm(whole[None]).logits[0, len(prompt) - 1 : -1] / 0.7
        expected = logits.log_softmax(-1).gather(1, whole[len(prompt) :, None])[:, 0]
        torch.testing.assert_close(rollout.old.logp[row, :length], expected, atol=2e-6, rtol=1e-5)


def test_a_row_depends_on_its_prompt_and_seed_alone():
    policy = tiny_policy()
    whole = written(policy)
    alone = written(policy, texts=("12+345=",), seeds=(5,))
    in_parts = written(policy, micro=1)
    assert whole.samples[2] == alone.samples[0] and whole.samples == in_parts.samples
    assert whole.samples[0] != whole.samples[1]
    torch.testing.assert_close(whole.old.logp[2], alone.old.logp[0], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_how_many_are_written_at_a_time_changes_no_completion(batch):
    plain, other = tiny_policy(critic=True), tiny_policy(critic=True, batch=batch)
    parts = []
    whole = written(plain, micro=2)
    found = written(other, micro=2, finished=lambda rows, texts: parts.append((rows.text, texts)))
    assert [len(texts) for _, texts in parts] == {1: [1, 1, 1, 1], 3: [3, 1], 100: [4]}[batch]
    assert sum((texts for _, texts in parts), []) == found.samples == whole.samples
    assert sum((texts for texts, _ in parts), []) == whole.prompts.text
    for name in ("token", "prompt"):
        assert torch.equal(getattr(found.trace, name), getattr(whole.trace, name))
    assert torch.equal(found.mask, whole.mask) and torch.equal(found.cut, whole.cut) and found.seeds == whole.seeds
    for name in ("logp", "entropy", "value"):
        torch.testing.assert_close(getattr(found.old, name), getattr(whole.old, name), atol=2e-6, rtol=1e-5)


def test_an_end_ends_a_row_and_the_limit_cuts_it():
    policy = tiny_policy(limit=12)
    rollout = written(policy, texts=("7=",) * 40, seeds=range(40))
    end = policy.tokenizer.eos_token_id
    ended = (rollout.trace.token == end).any(1)
    assert 0 < ended.sum() < 40
    assert torch.equal(rollout.cut, ~ended)
    assert (rollout.mask.sum(1)[~ended] == 12).all()
    places = (rollout.trace.token == end).int().argmax(1)
    assert torch.equal(rollout.mask.sum(1)[ended], places[ended] + 1)
    shorter = tiny_policy(limit=12, train_cut=False)
    masked = written(shorter, texts=("7=",) * 40, seeds=range(40))
    assert torch.equal(masked.mask.any(1), ended)


def test_a_stop_string_ends_a_row_and_is_not_part_of_its_text():
    free, stopped = tiny_policy(limit=24), tiny_policy(limit=24, stop=["4", "77"])
    texts, seeds = ("7=",) * 30, range(30)
    without, found = written(free, texts=texts, seeds=seeds), written(stopped, texts=texts, seeds=seeds)
    shortened = 0
    for plain, text, cut in zip(without.samples, found.samples, found.cut, strict=True):
        places = [at for stop in ("4", "77") if (at := plain.find(stop)) >= 0]
        assert text == (plain[: min(places)] if places else plain)
        shortened += bool(places)
        assert not (places and cut)
    assert shortened > 5


def test_given_beginnings_are_read_and_not_trained():
    policy = tiny_policy(limit=10)
    begin = [torch.tensor([DIGITS["3"], DIGITS["1"]]), torch.tensor([], dtype=torch.long)]
    prompts = [policy.tokenizer("7=", return_tensors="pt")["input_ids"][0]] * 2
    done = generate(policy.model, prompts, [1, 2], limit=10, end=[0], begin=begin)
    assert done.token[0, :2].tolist() == begin[0].tolist()
    assert done.sampled[0, :3].tolist() == [False, False, True] and done.sampled[1, 0]


def test_the_gradient_through_a_cut_of_rows_and_positions_is_that_of_the_whole():
    policy = tiny_policy()
    rollout = replace(written(policy), reward=torch.tensor([1.0, 0.0, 0.5, 0.2]))
    rollout = replace(rollout, group=torch.zeros(4, dtype=torch.long))
    objective = Objective(GroupRelative(), surrogate=plain_ratio)
    credit = assign_credit(objective, rollout)

    def gradient(*cuts):
        policy.model.zero_grad()
        for rows, steps in cuts:
            part = rollout.at(rows, steps)
            policy_loss(objective, policy.evaluate(part), part, credit.at(rows, steps))[0].backward()
        return torch.cat([p.grad.flatten() for p in policy.trainable()])

    whole = gradient((slice(None), slice(None)))
    by_rows = gradient((slice(0, 1), slice(None)), (torch.tensor([3, 1]), slice(None)), (slice(2, 3), slice(None)))
    by_steps = gradient((slice(None), slice(0, 3)), (slice(None), slice(3, None)))
    for other in (by_rows, by_steps):
        torch.testing.assert_close(other, whole, atol=1e-6 * float(whole.norm()), rtol=0)


def test_rows_are_packed_without_gaps():
    trace = trace_of([torch.tensor([5, 6]), torch.tensor([7])], torch.tensor([[1, 2, 3, 0], [4, 9, 0, 0]]))
    wanted = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    packed = pack(trace, wanted)
    assert packed.tokens.tolist() == [[5, 6, 1, 2], [7, 4, 9, 0]]
    assert packed.column.tolist() == [1, 2, 3, 0, 1] and packed.chosen.tolist() == [1, 2, 3, 4, 9]
    later = pack(trace.at(slice(0, 1), slice(1, 3)), wanted[:1, 1:3])
    assert later.chosen.tolist() == [2, 3] and later.tokens.tolist() == [[5, 6, 1, 2]]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_step_of_grpo_moves_the_ratio_and_the_reference_stays(lora):
    policy = tiny_policy(lora=lora)
    policy.keep_reference()
    rollout = replace(written(policy), reward=torch.tensor([1.0, 0.0, 0.5, 0.2]), group=torch.zeros(4, dtype=torch.long))
    rollout, _ = updated(policy, GRPO().objective(), rollout, rounding=1e-5)
    with policy.reference(), torch.no_grad():
        again = policy.evaluate(rollout)
    torch.testing.assert_close(again.logp, rollout.ref.logp, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_saved_weights_load_again_and_in_stock_tools(lora, tmp_path):
    policy = tiny_policy(lora=lora, critic=True)
    with torch.no_grad():
        for p in policy.trainable():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    rollout = written(policy)
    policy.save(tmp_path)
    other = tiny_policy(lora=lora, critic=True)
    assert other.evaluate(rollout).logp.sub(policy.evaluate(rollout).logp).abs().max() > 1e-3
    other.load(tmp_path)
    torch.testing.assert_close(other.evaluate(rollout).logp, policy.evaluate(rollout).logp, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(other.evaluate(rollout).value, policy.evaluate(rollout).value, atol=1e-6, rtol=1e-6)
    tokens = torch.tensor([[5, 6, 7, 8]])
    if lora:
        from peft import PeftModel

        stock = PeftModel.from_pretrained(tiny_policy().model.lm, tmp_path)
    else:
        from transformers import AutoModelForCausalLM

        stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(stock(tokens).logits, policy.model.lm(tokens).logits, atol=1e-6, rtol=1e-6)


def test_recomputed_layers_keep_less_and_give_the_same_gradient():
    plain, thrifty = tiny_policy(), tiny_policy(recompute=True)
    rollout = written(plain)
    kept, gradients = [], []
    for policy in (plain, thrifty):
        with saved_for_backward(policy.model) as sizes:
            said = policy.evaluate(rollout).logp
        kept.append(sum(sizes.values()))
        said.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.trainable()]))
    assert kept[1] < 0.6 * kept[0]
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6 * float(gradients[0].norm()), rtol=0)
    assert written(thrifty).samples == rollout.samples


def test_adapters_on_the_head_are_refused():
    lora = Adapters(targets=["q_proj", "lm_head"])
    with pytest.raises(ConfigError, match=r"model\.lora\.targets: expected linear layers below the head, got 'lm_head'.*Remove it"):
        attach_lora(tiny_lm(), Language(train="lora", lora=lora))
    attach_lora(tiny_lm(), Language(train="lora", lora=Adapters(targets=["q_proj"])))
