"""A masked-diffusion language model as a policy: an unbiased bound, the same masks twice, memory that does not grow with them."""

import json
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from test_train import fresh
from tiny_lm import DIGITS, tiny_tokenizer
from toys import saved_for_backward, updated

from studio.algorithms.bgpo import BGPO
from studio.config import build
from studio.core import assign_credit, policy_loss
from studio.errors import ConfigError, MissingError
from studio.recipe import Recipe
from studio.run import RunView
from studio.text.load import attach_lora
from studio.text.masked_diffusion import MaskedPolicy, MaskTrace, draw_masks
from studio.text.masked_network import MaskedNetwork, build_masked
from studio.text.masked_recipe import MaskedText, Unmasking
from studio.text.recipe import Language
from studio.text.recompute import awake, recompute_layers
from studio.text.unmask import laid_out, over_at
from studio.train import train
from studio.types import Evaluation, Prompts, Rollout

VOCABULARY = len(DIGITS) + 1  # and the mask
BY_STEP = [slice(k, k + 1) for k in range(4)]


def masked_tokenizer():
    made = tiny_tokenizer()
    made.add_special_tokens({"mask_token": "<mask>"})
    return made


def masked_lm(kind="bert", seed=0):
    from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

    settings = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    settings |= {
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.15,
        "pad_token_id": DIGITS["<pad>"],
    }
    torch.manual_seed(seed)
    if kind == "bert":
        lm = BertForMaskedLM(BertConfig(**settings, attn_implementation="sdpa"))
    else:
        ends = {"bos_token_id": None, "cls_token_id": None, "sep_token_id": None, "eos_token_id": 0}
        lm = ModernBertForMaskedLM(ModernBertConfig(**settings, **ends, attn_implementation="sdpa"))
    torch.nn.init.normal_(lm.get_output_embeddings().bias, std=0.2)  # zero at the start: nothing would show
    return lm.eval()


def masked_policy(kind="bert", *, lora=False, samples=4, seed=0, **unmasking) -> MaskedPolicy:
    lm, tokenizer = masked_lm(kind, seed), masked_tokenizer()
    if lora:
        attach_lora(lm, Language(train="lora"))
        lm.peft_config["default"].task_type = None
        with torch.no_grad():
            for name, p in lm.named_parameters():
                if "lora_B" in name:  # zero at the start: nothing would move
                    p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    sampling = Unmasking(**{"limit": 10, "block": 4, "steps": 2, "temperature": 1.0, **unmasking})
    network = MaskedNetwork(lm, tokenizer.mask_token_id)
    return MaskedPolicy(network, tokenizer, sampling, samples=samples, provides=MaskedText.provides, lora=lora)


def written(policy, texts=("1+1=", "1+1=", "12+345=", "9="), seeds=(3, 4, 5, 6), **options) -> Rollout:
    rows = Prompts(list(texts), list(texts), [{} for _ in texts])
    group = torch.tensor([texts.index(text) for text in texts])
    return policy.sample(rows, group=group, seeds=list(seeds), step=0, **options)


def rewarded(rollout, reward=(1.0, 0.0, 0.5, 0.2)):
    return replace(rollout, reward=torch.tensor(reward), group=torch.zeros(len(reward), dtype=torch.long))


def test_the_bound_is_unbiased():
    """Against the sum over all masks of three tokens, by the plain model: E = 1/3·Σ_x mean over subsets of size x of mean CE."""
    policy = masked_policy(samples=2)
    prompt, token = torch.tensor([[9, 12]]), torch.tensor([[3, 5, 0]])
    exact = 0.0
    for x in (1, 2, 3):
        subsets = list(combinations(range(3), x))
        for subset in subsets:
            shown = torch.cat([prompt, token.clone()], 1)
            shown[0, [2 + place for place in subset]] = policy.model.mask
            logp = policy.model.lm(shown).logits[0].log_softmax(-1)
            exact += sum(-logp[2 + place, token[0, place]].item() for place in subset) / x / len(subsets) / 3
    count = 2000
    length = torch.full((count,), 3)
    trace = MaskTrace(prompt.expand(count, -1), length - 1, token.expand(count, -1), length, draw_masks(length, 2, range(count), 3))
    mask, rows = torch.ones(count, 2, dtype=torch.bool), Prompts([""] * count, [""] * count, [{}] * count)
    with torch.no_grad():
        fit = policy.evaluate(Rollout(rows, None, trace, mask, torch.arange(count), Evaluation())).fit
    assert fit.std() > 0.1
    assert abs(fit.mean().item() - exact) < 4 * fit.std().item() / count**0.5  # stratified: the error is smaller still
    shares = trace.hidden.flatten(0, 1).float().mean(0)
    torch.testing.assert_close(shares, torch.full((3,), 2 / 3), atol=0.025, rtol=0)  # (1 + 2 + 3)/3 of 3


@pytest.mark.parametrize(("length", "samples"), [(3, 7), (10, 4), (5, 5), (1, 3)])
def test_counts_of_masked_tokens_are_spread_evenly(length, samples):
    masks = draw_masks(torch.full((200,), length), samples, range(200), 12)
    counts = masks.sum(2)
    assert masks.shape == (200, samples, 12) and not masks[:, :, length:].any()
    assert counts.min() >= 1 and counts.max() <= length
    for row in counts:
        times = torch.bincount(row - 1, minlength=length)
        assert times.max() - times.min() <= 1
        if samples <= length:  # distances around the circle differ by at most one
            places = row.sort().values
            steps = torch.cat([places[1:] - places[:-1], places[:1] + length - places[-1:]])
            assert steps.max() - steps.min() <= 1
    alone = torch.bincount(counts[:, 0] - 1, minlength=length) / 200
    assert (alone - 1 / length).abs().max() < 4 * (0.25 / 200) ** 0.5


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_the_first_replay_has_ratio_one(kind):
    policy = masked_policy(kind)
    rollout = written(policy)
    assert rollout.old.fit.shape == (4, 4) and rollout.mask.all() and rollout.old.fit.std() > 0.05
    again = policy.evaluate(rollout).fit
    torch.testing.assert_close(again, rollout.old.fit, atol=2e-6, rtol=0)
    assert torch.equal(policy.evaluate(rollout.at(slice(None), BY_STEP[2])).fit, rollout.old.fit[:, 2:3])  # the same cut


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_recorded_error_is_that_of_the_plain_model(kind):
    policy = masked_policy(kind)
    rollout = written(policy)
    for row, text in enumerate(rollout.prompts.text):
        prompt = policy.tokenizer(text, return_tensors="pt")["input_ids"][0]
        length, token = int(rollout.trace.length[row]), rollout.trace.token[row]
        for k in range(4):
            hidden = rollout.trace.hidden[row, k]
            shown = torch.where(hidden | (torch.arange(10) >= length), policy.model.mask, token)
            logp = policy.model.lm(torch.cat([prompt, shown])[None]).logits[0, len(prompt) :].log_softmax(-1)
            expected = -logp[hidden].gather(1, token[hidden, None]).mean()
            torch.testing.assert_close(rollout.old.fit[row, k], expected, atol=3e-6, rtol=0)


def test_the_gradient_through_any_cut_of_rows_and_masks_is_that_of_the_whole():
    policy = masked_policy()
    rollout, objective = rewarded(written(policy)), BGPO().objective()
    credit = assign_credit(objective, rollout)

    def gradient(*cuts):
        policy.model.zero_grad()
        for rows, steps in cuts:
            part = rollout.at(rows, steps)
            policy_loss(objective, policy.evaluate(part), part, credit.at(rows, steps))[0].backward()
        return torch.cat([p.grad.flatten() for p in policy.trainable() if p.grad is not None])

    every = slice(None)
    whole = gradient((every, every))
    by_rows = gradient((slice(0, 1), every), (torch.tensor([3, 1]), every), (slice(2, 3), every))
    by_step = gradient(*((every, k) for k in BY_STEP))
    both = gradient(*((rows, k) for rows in (slice(0, 3), slice(3, 4)) for k in BY_STEP))
    assert whole.norm() > 0
    for other in (by_rows, by_step, both):
        torch.testing.assert_close(other, whole, atol=1e-6 * float(whole.norm()), rtol=0)


def test_at_the_old_weights_every_sample_has_weight_one_over_their_number():
    """dLoss/d l_k = -A/(rows·M): fit = -l, so +A/(4·4) on fit."""
    policy = masked_policy()
    rollout, objective = rewarded(written(policy)), BGPO().objective()
    credit = assign_credit(objective, rollout)
    fit = rollout.old.fit.clone().requires_grad_()
    policy_loss(objective, Evaluation(fit=fit), rollout, credit)[0].backward()
    torch.testing.assert_close(fit.grad, credit.advantage / 16, atol=1e-7, rtol=0)


def test_a_row_depends_on_its_prompt_and_seed_alone():
    policy = masked_policy()
    whole = written(policy)
    alone, in_parts = written(policy, texts=("12+345=",), seeds=(5,)), written(policy, micro=1)
    assert whole.samples[2] == alone.samples[0] and whole.samples == in_parts.samples
    assert torch.equal(whole.trace.hidden[2], alone.trace.hidden[0])
    torch.testing.assert_close(whole.old.fit[2], alone.old.fit[0], atol=2e-6, rtol=0)
    assert whole.samples[0] != whole.samples[1] and not torch.equal(whole.trace.hidden[0], whole.trace.hidden[1])
    drawn = policy.draw(whole.prompts, [3, 4, 5, 6])
    assert drawn[2] == policy.draw(whole.prompts.take([2]), [5])[0]


def test_the_surest_tokens_are_filled_in_first():
    """By hand: one block, a call for each token, greedy: every call fixes the place with the highest probability."""
    policy = masked_policy(limit=4, block=4, steps=4, eval_temperature=0)
    rows = Prompts(["1+"], ["1+"], [{}])
    prompt = policy.reader.read(rows)[0]
    token = torch.full((4,), policy.model.mask)
    for _ in range(4):
        logits = policy.model.lm(torch.cat([prompt, token])[None]).logits[0, len(prompt) :].clone()
        logits[:, [policy.model.mask, policy.pad]] = -torch.inf
        sure, choice = logits.softmax(-1).max(-1)
        at = torch.where(token == policy.model.mask, sure, -1).argmax()
        token[at] = choice[at]
    done = policy._write([prompt], [0], 0.0)
    length = over_at(token, 0, policy.reader.end, None) or 4
    assert done.token[0, :length].tolist() == token[:length].tolist()


def test_an_end_ends_a_row_and_the_limit_cuts_it():
    policy = masked_policy(limit=12)
    rollout = written(policy, texts=("7=",) * 40, seeds=range(40))
    end, trace = policy.tokenizer.eos_token_id, rollout.trace
    ended = (trace.token == end).any(1)
    assert 5 < ended.sum() < 40 and torch.equal(rollout.cut, ~ended)
    assert torch.equal(trace.length[ended], (trace.token == end).int().argmax(1)[ended] + 1) and (trace.length[~ended] == 12).all()
    after = torch.arange(12) >= trace.length[:, None]
    assert (trace.token[after] == policy.pad).all() and not (trace.token[~after] == policy.model.mask).any()
    assert not (trace.token[~after] == policy.pad).any()
    masked = written(masked_policy(limit=12, train_cut=False), texts=("7=",) * 40, seeds=range(40))
    assert torch.equal(masked.mask.all(1), ended) and torch.equal(masked.mask.any(1), ended)


def test_a_stop_string_ends_a_row_and_is_not_part_of_its_text():
    policy = masked_policy(limit=16, stop=["4", "77"])
    rollout = written(policy, texts=("7=",) * 30, seeds=range(30))
    assert not any(stop in text for stop in ("4", "77") for text in rollout.samples)
    stopped = (rollout.trace.length < 16) & ~(rollout.trace.token == policy.tokenizer.eos_token_id).any(1)
    assert stopped.sum() > 3 and not rollout.cut[stopped].any()


def test_prompts_and_completions_are_laid_out_without_gaps():
    made = laid_out(torch.tensor([[5, 6], [7, 0]]), torch.tensor([2, 1]), torch.tensor([[1, 2, 3], [4, 9, 8]]))
    assert made.tokens[0].tolist() == [5, 6, 1, 2, 3] and made.tokens[1, :4].tolist() == [7, 4, 9, 8]
    assert made.columns.tolist() == [[2, 3, 4], [1, 2, 3]] and made.seen.tolist() == [[True] * 5, [True] * 4 + [False]]


def test_memory_kept_for_the_backward_pass_does_not_depend_on_the_number_of_masks():
    def kept(samples, steps):
        policy = masked_policy(samples=samples)
        rollout, length = written(policy), 10
        hidden = torch.zeros(4, samples, length, dtype=torch.bool)
        hidden[:, :, :5] = True  # the same number of masked tokens everywhere
        rollout = replace(rollout, trace=replace(rollout.trace, hidden=hidden, length=torch.full((4,), length)))
        with saved_for_backward(policy.model) as sizes:
            policy.evaluate(rollout.at(slice(None), steps))
        return sum(sizes.values())

    alone = [kept(samples, slice(samples - 1, samples)) for samples in (2, 8)]
    assert alone[0] == pytest.approx(alone[1], rel=0.01)  # a view of the masks keeps the whole record
    assert kept(8, slice(None)) > 4 * alone[0]


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_recomputed_layers_keep_less_and_give_the_same_gradient(kind):
    policy = masked_policy(kind)
    rollout, found = written(policy), []
    for again in (False, True):
        if again:
            awake(recompute_layers(policy.model.lm), True)
        policy.model.zero_grad()
        with saved_for_backward(policy.model) as sizes:
            said = policy.evaluate(rollout).fit
        said.sum().backward()
        found.append((sum(sizes.values()), said, torch.cat([p.grad.flatten() for p in policy.trainable() if p.grad is not None])))
    assert found[1][0] < 0.7 * found[0][0]
    torch.testing.assert_close(found[1][1:], found[0][1:], atol=1e-6, rtol=1e-5)  # dropout would show


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_step_of_bgpo_moves_the_ratio_and_the_reference_stays(lora):
    policy = masked_policy(lora=lora)
    policy.keep_reference()
    rollout = rewarded(written(policy))
    with torch.no_grad(), policy.reference():
        rollout = replace(rollout, ref=policy.evaluate(rollout))
    rollout, _ = updated(policy, BGPO().objective(), rollout, rounding=1e-5)
    with policy.reference(), torch.no_grad():
        again = policy.evaluate(rollout)
    torch.testing.assert_close(again.fit, rollout.ref.fit, atol=2e-6, rtol=0)


def test_bgpo_learns_to_write_a_digit():
    policy = masked_policy(samples=4, limit=6, block=6, steps=3)
    optimizer, objective = torch.optim.AdamW(policy.trainable(), lr=1e-3), BGPO().objective()
    shares = []
    for step in range(24):
        rollout = written(policy, texts=("1+1=",) * 16, seeds=range(16 * step, 16 * step + 16))
        share = torch.tensor([text.count("7") / max(1, len(text)) for text in rollout.samples])
        shares.append(share.mean().item())
        rollout = replace(rollout, reward=share)
        credit = assign_credit(objective, rollout)
        for k in BY_STEP:
            part = rollout.at(slice(None), k)
            policy_loss(objective, policy.evaluate(part), part, credit.at(slice(None), k))[0].backward()
        torch.nn.utils.clip_grad_norm_(list(policy.trainable()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert shares[0] < 0.2 and sum(shares[-3:]) / 3 > 0.8, shares


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_saved_weights_load_again_and_in_stock_tools(kind, lora, tmp_path):
    policy = masked_policy(kind, lora=lora)
    with torch.no_grad():
        for p in policy.trainable():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    rollout = written(policy)
    policy.save(tmp_path)
    other = masked_policy(kind, lora=lora)
    assert other.evaluate(rollout).fit.sub(policy.evaluate(rollout).fit).abs().max() > 1e-3
    other.load(tmp_path)
    torch.testing.assert_close(other.evaluate(rollout).fit, policy.evaluate(rollout).fit, atol=1e-6, rtol=1e-6)
    tokens = torch.tensor([[5, 6, 7, policy.model.mask]])
    if lora:
        from peft import PeftModel

        stock = PeftModel.from_pretrained(masked_policy(kind).model.lm, tmp_path)
    else:
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        stock = AutoModelForMaskedLM.from_pretrained(tmp_path, use_safetensors=True)
        assert AutoTokenizer.from_pretrained(tmp_path).mask_token_id == policy.model.mask
        again = build_masked(Language(id=str(tmp_path), device="cpu"), policy.unmasking, 4, policy.provides, 0)
        torch.testing.assert_close(again.evaluate(rollout).fit, policy.evaluate(rollout).fit, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(stock(tokens).logits, policy.model.lm(tokens).logits, atol=1e-6, rtol=1e-6)


def test_models_that_cannot_be_used_are_refused_by_name(tmp_path):
    from tiny_lm import tiny_lm

    def refused(error, words):
        with pytest.raises(error, match=words):
            build_masked(Language(id=str(tmp_path), device="cpu"), Unmasking(), 2, MaskedText.provides, 0)

    refused(MissingError, "expected a masked language model in safetensors")
    tiny_lm().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    refused(MissingError, "expected a masked language model in safetensors")
    masked_lm().save_pretrained(tmp_path)
    refused(ConfigError, "expected a tokenizer with a mask token")


def test_a_prompt_longer_than_the_context_is_refused():
    with pytest.raises(ConfigError, match="expected at most 64 tokens of prompt and completion.*got 60 \\+ sampling.limit = 10"):
        masked_policy().check_prompts(Prompts(["1" * 60], ["a"], [{}]))


def digits(samples, prompts):
    return torch.tensor([sum(c.isdigit() for c in text) / max(1, len(text)) for text in samples])


def test_a_run_of_the_recipe(tmp_path):
    masked_lm().save_pretrained(tmp_path / "model")
    masked_tokenizer().save_pretrained(tmp_path / "model")
    lines = [json.dumps({"prompt": f"{a}+{b}="}) for a in range(4) for b in (3, 40)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    settings = {"limit": 8, "block": 4, "steps": 2, "temperature": 1.0}
    recipe = build(
        Recipe,
        {
            "policy": {"name": "masked_text", "model": {"id": str(tmp_path / "model")}, "sampling": settings, "samples": 3},
            "algorithm": "bgpo",
            "prompts": {"name": "file", "train": str(tmp_path / "prompts.jsonl"), "test": str(tmp_path / "prompts.jsonl")},
            "rewards": {"function": {"weight": 1.0, "target": "test_masked_diffusion:digits", "reads": "text"}},
            "train": {"steps": 2, "groups_per_step": 2, "group_size": 4, "gradient_accumulation_steps": 2}
            | {"learning_rate": 1e-3, "split_steps": True, "ratio_tolerance": 1e-5},
            "watch": {"every": 2, "prompts": 4, "samples": 2},
        },
    )
    assert recipe.policy.options.forwards() == {"rollout": 4 + 3, "replay": 3}
    recipe.check()
    run = fresh(recipe, tmp_path, "run")
    assert train(recipe, run) == "finished"
    records = RunView.open(run.folder).metrics().records
    assert {"ratio/largest", "reward/mean", "loss/total"} <= records[1].keys() and records[1]["loss/grad_norm"] > 0
    assert not any("@" in name for name in records[1])  # the third mask of one row has nothing to do with that of another
