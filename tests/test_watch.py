"""The alarm: after patience, for gold that falls while the proxy rises and for guards that leave their range."""

import pytest
import torch

from studio.settings import Watch
from studio.types import Prompts
from studio.watch import Alarm, Evaluated, evaluate, records

ROWS = 4
SPREAD = torch.tensor([-1.0, -1.0, 1.0, 1.0])  # mean 0, population std 1


def seen(proxy: float = 0.0, gold: float = 0.0, guard: float = 0.0) -> Evaluated:
    """Means as given, spread 1, four rows: the standard error is 1/2."""
    prompts = Prompts(list("abcd"), list("abcd"), [{}] * ROWS)
    return Evaluated(
        prompts, list(range(ROWS)), torch.zeros(ROWS, 3, 2, 2),
        {"scene": SPREAD + proxy}, {"clip": SPREAD + gold}, {"contrast": SPREAD + guard},
    )  # fmt: skip


def alarm(**settings) -> Alarm:
    ready = Alarm(Watch(**({"fall": 3.0, "sigmas": 3.0, "patience": 2} | settings)))
    assert ready.look(seen(), ["scene"]) == []  # the base
    return ready


def test_the_base_never_alarms():
    assert Alarm(Watch(patience=1)).look(seen(proxy=99, gold=-99, guard=99), ["scene"]) == []


def test_gold_that_falls_while_the_proxy_rises_alarms_after_patience():
    watch = alarm()
    hacked = seen(proxy=0.1, gold=-1.6)  # 3 standard errors are 3·1/√4 = 1.5
    assert watch.look(hacked, ["scene"]) == []
    (message,) = watch.look(hacked, ["scene"])
    assert "held-out clip fell from 0.0000 to -1.6000" in message
    assert len(watch.look(hacked, ["scene"])) == 1  # and again, while it lasts


@pytest.mark.parametrize(("proxy", "gold"), [(0.1, -1.4), (-0.1, -1.6), (0.0, -1.6), (0.1, 1.6)])
def test_no_alarm_within_noise_or_when_the_proxy_did_not_rise(proxy, gold):
    watch = alarm(patience=1)
    assert watch.look(seen(proxy=proxy, gold=gold), ["scene"]) == []


@pytest.mark.parametrize(("guard", "alarms"), [(2.9, False), (3.1, True), (-2.9, False), (-3.1, True)])
def test_a_guard_beyond_three_sigma(guard, alarms):
    watch = alarm(patience=1)
    messages = watch.look(seen(guard=guard), ["scene"])
    assert len(messages) == alarms
    if alarms:
        assert "guard contrast moved from 0.0000" in messages[0] and "3.1 σ" in messages[0]


def test_a_good_evaluation_in_between_starts_the_count_again():
    watch = alarm()
    bad = seen(guard=5.0)
    assert watch.look(bad, ["scene"]) == []
    assert watch.look(seen(), ["scene"]) == []
    assert watch.look(bad, ["scene"]) == []
    assert len(watch.look(bad, ["scene"])) == 1


def test_memory_survives_a_checkpoint(tmp_path):
    watch = alarm()
    watch.look(seen(guard=5.0), ["scene"])
    torch.save(watch.state_dict(), tmp_path / "alarm.pt")
    resumed = Alarm(watch.settings)
    resumed.load_state_dict(torch.load(tmp_path / "alarm.pt", weights_only=True))
    assert len(resumed.look(seen(guard=5.0), ["scene"])) == 1


def test_missing_scores_are_left_out():
    some = seen()
    some.held_out["clip"][0] = torch.nan
    assert some.means()["clip"] == pytest.approx(1 / 3)  # of -1, 1, 1


def test_records_name_prompt_seed_and_scores():
    first = records(0, seen(gold=2.0), 2)
    assert [r["prompt"] for r in first] == ["a", "b"] and [r["seed"] for r in first] == [0, 1]
    assert first[0]["rewards"] == {"scene": -1.0, "held_out.clip": 1.0} and first[0]["base"] is True
    assert len(records(5, seen(), 99)) == ROWS and records(5, seen(), 1)[0]["base"] is False


class Painted:
    """A policy whose picture is its seed: what evaluation draws can be read off the pixels."""

    def __init__(self, micro):
        self.micro, self.batches = micro, []

    def draw(self, prompts, seeds):
        parts = [seeds[i : i + self.micro] for i in range(0, len(seeds), self.micro)]
        self.batches = [len(part) for part in parts]
        values = torch.cat([torch.tensor([seed % 1000 / 1000 for seed in part]) for part in parts])
        return values[:, None, None, None].expand(-1, 3, 4, 4)


class Brightness:
    """Scores a picture by its brightness."""

    reads, differentiable, range, license, model_id = "image", False, (0.0, 1.0), "Apache-2.0", None

    def __call__(self, samples, prompts):
        return samples.flatten(1).mean(1)


@pytest.mark.parametrize("micro", [1, 3, 5, 7, 100])
def test_a_test_set_that_does_not_divide_the_batch_is_weighted_by_its_rows(micro):
    """Seven prompts in batches of three are 3 + 3 + 1; the mean of three batch means would count the last one thrice."""
    from studio.config import Weighted
    from studio.scoring import Scorer
    from studio.seeds import row_seed

    scorer = Scorer({"bright": Weighted("bright", 1.0, Brightness())})
    policy, texts = Painted(micro), list("abcdefg")
    seen = evaluate(policy, Prompts(texts, texts, [{}] * 7), scorer, Scorer({}), seed=3)
    by_hand = sum(row_seed(3, text, 0) % 1000 / 1000 for text in texts) / 7
    assert seen.means()["bright"] == pytest.approx(by_hand, abs=1e-6)
    assert sum(policy.batches) == 7 and (micro != 3 or policy.batches == [3, 3, 1])


def test_a_prompt_that_a_test_set_repeats_is_drawn_from_another_seed():
    from studio.scoring import Scorer

    texts = ["a", "b", "a"]
    seen = evaluate(Painted(8), Prompts(texts, texts, [{}] * 3), Scorer({}), Scorer({}), seed=3)
    assert len(set(seen.seeds)) == 3
    alone = evaluate(Painted(8), Prompts(["a"], ["a"], [{}]), Scorer({}), Scorer({}), seed=3)
    assert alone.seeds == seen.seeds[:1]  # and the first keeps the one it always had
