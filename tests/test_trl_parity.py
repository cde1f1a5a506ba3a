"""The same losses, gradients and advantages as TRL 1.16: its trainers' own code on the completions that our policy wrote.

TRL's options and ours (every option that is not named keeps its default on both sides, but for `use_bias_correction_kl`):

    loss_type grpo, epsilon                   grpo: clip, and its weighting by_sample
    loss_type dr_grpo, max_completion_length  dr_grpo: length
    loss_type dapo, epsilon, epsilon_high     dapo: low, high; by_decision
    loss_type bnpo                            by_decision within every part: ours do not depend on parts, so in one part only
    loss_type cispo, epsilon_high             cispo: bound, the largest weight itself
    loss_type sapo, sapo_temperature_pos/_neg sapo: rise, fall
    importance_sampling_level sequence        gspo: ratio=sample_ratio
    RLOOTrainer, epsilon, beta                rloo: clip, kl inside the reward
    beta                                      strength of kl_low_variance among the regularizers
    scale_rewards group, none, batch          GroupRelative(scale="group", None, "global", ddof=1)
    temperature                               sampling.temperature
    mask_truncated_completions                sampling.train_cut=False
    use_bias_correction_kl (True)             none: ours is False; as a regularizer it is r·kl_low_variance
"""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tiny_lm import tiny_lm, tiny_policy, tiny_tokenizer

from studio.algorithms.cispo import CISPO
from studio.algorithms.dapo import DAPO
from studio.algorithms.dr_grpo import DrGRPO
from studio.algorithms.grpo import GRPO
from studio.algorithms.gspo import GSPO
from studio.algorithms.lite_ppo import LitePPO
from studio.algorithms.rloo import RLOO
from studio.algorithms.sapo import SAPO
from studio.core import (
    GroupRelative,
    LeaveOneOut,
    Objective,
    StopClip,
    active,
    assign_credit,
    by_decision,
    kl_low_variance,
    policy_loss,
)
from studio.replay import cuts
from studio.text.policy import TokenPolicy
from studio.types import Prompts, Rollout

TEXTS, SIZE, LIMIT, TEMPERATURE = ("1+1=", "12+345=", "9=", "7*8-20="), 4, 12, 0.8
REWARDS: list[float | None] = [0.0, 1.0, 0.25, 0.5, 0.9, 0.1, 0.1, 0.4, 1.0, 0.0, 0.0, 0.0, 0.3, 0.2, 0.6, 0.7]
TIGHT = 1e-5
pytestmark = pytest.mark.slow
# TRL's options, ours, and ours with one constant changed: a comparison must notice that
CASES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "grpo": ({"loss_type": "grpo"}, GRPO(kl=0), GRPO(kl=0, clip=0.25)),
    "dr_grpo": ({"loss_type": "dr_grpo", "scale_rewards": "none"}, DrGRPO(length=LIMIT), DrGRPO(length=LIMIT + 1)),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, DAPO(), DAPO(high=0.2)),
    "lite_ppo": ({"loss_type": "dapo", "scale_rewards": "batch"}, LitePPO(eps=1e-4), LitePPO(eps=1e-2)),
    "bnpo": ({"loss_type": "bnpo"}, DAPO(high=0.2), DAPO(high=0.25)),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.2}, CISPO(bound=1.2), CISPO(bound=1.3)),
    "sapo": ({"loss_type": "sapo"}, SAPO(), SAPO(fall=1.0)),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.04},
        GSPO(low=0.05, high=0.04),
        GSPO(low=0.05, high=0.4),
    ),
    "rloo": ({}, RLOO(kl=0), RLOO(kl=0, clip=0.4)),
}


@dataclass(frozen=True)
class Scene:
    """What both sides are given: a model on disk that is the reference, older and newer weights, and what the older wrote."""

    folder: Any
    policy: TokenPolicy  # with the newer weights
    old: dict[str, torch.Tensor]
    new: dict[str, torch.Tensor]
    rollout: Rollout

    def completions(self) -> list[list[int]]:
        lengths = self.rollout.mask.sum(1).tolist()
        return [row[:length] for row, length in zip(self.rollout.trace.token.tolist(), lengths, strict=True)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Scene:
    folder = tmp_path_factory.mktemp("trl")
    tiny_lm().save_pretrained(folder)
    policy = tiny_policy(limit=LIMIT, temperature=TEMPERATURE)
    lm = policy.model.lm
    policy.keep_reference()
    old = moved(lm, 0.05, seed=1)
    texts = [text for text in TEXTS for _ in range(SIZE)]
    group = torch.arange(len(texts)) // SIZE
    rollout = policy.sample(Prompts(texts, texts, [{}] * len(texts)), group=group, seeds=range(len(texts)), step=0)
    with torch.no_grad(), policy.reference():
        rollout = replace(rollout, ref=policy.evaluate(rollout), reward=torch.tensor(REWARDS))
    lengths = rollout.mask.sum(1)
    assert lengths.min() == 1 and lengths.max() == LIMIT and len(lengths.unique()) > 4  # uneven
    return Scene(folder, policy, old, moved(lm, 0.03, seed=2), rollout)


def moved(lm, step: float, seed: int) -> dict[str, torch.Tensor]:
    """All weights a random step away, in place -> a copy of them."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter += step * torch.randn(parameter.shape, generator=noise)
    return {name: parameter.clone() for name, parameter in lm.state_dict().items()}


def trainer_of(scene: Scene, rewards: list[float | None] = REWARDS, *, leave_one_out: bool = False, **options) -> Any:
    """A trainer of TRL whose completions are those of the scene."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    trainers, configs = (trl.GRPOTrainer, trl.RLOOTrainer), (trl.GRPOConfig, trl.RLOOConfig)

    class Given(trainers[leave_one_out]):
        def _generate_single_turn(self, *asked, **named):
            return scene.completions() if leave_one_out else (scene.completions(), None)

    own = {} if leave_one_out else {"use_bias_correction_kl": False}
    settings = configs[leave_one_out](
        **{
            "output_dir": str(scene.folder / "out"),
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "per_device_train_batch_size": len(REWARDS),
            "num_generations": SIZE,
            "num_iterations": 2,  # so that likelihoods are taken when the completions are made
            "max_completion_length": LIMIT,
            "temperature": TEMPERATURE,
            **own,
            **options,
        }
    )
    return Given(
        AutoModelForCausalLM.from_pretrained(scene.folder),
        lambda completions, **_: rewards,
        settings,
        Dataset.from_dict({"prompt": list(TEXTS)}),
        processing_class=tiny_tokenizer(),
    )


def recorded(trainer: Any, scene: Scene) -> dict[str, Any]:
    """What TRL makes of the completions under the older weights; the newer ones are loaded afterwards."""
    trainer.model.train()
    trainer.model.load_state_dict(scene.old)
    inputs = trainer._generate_and_score_completions([{"prompt": text} for text in scene.rollout.prompts.text])
    trainer.model.load_state_dict(scene.new)
    return inputs


def theirs(trainer: Any, inputs: dict[str, Any], parts: int = 1) -> tuple[float, dict[str, torch.Tensor]]:
    """TRL's loss and gradient, summed over parts as over steps of gradient accumulation."""
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = parts
    trainer.model.zero_grad()
    rows, total = len(REWARDS) // parts, 0.0
    for at in range(0, len(REWARDS), rows):
        part = {name: value[at : at + rows] if value.ndim else value for name, value in inputs.items()}
        loss = trainer.compute_loss(trainer.model, part)
        if "old_logps" in inputs:  # of RLOOTrainer: transformers' own trainer divides
            loss = loss / parts
        loss.backward()
        total += loss.item()
    return total, gradients(trainer.model)


def ours(scene: Scene, objective: Objective, parts: int = 1) -> tuple[float, dict[str, torch.Tensor]]:
    lm, rollout = scene.policy.model.lm, scene.rollout
    lm.load_state_dict(scene.new)
    lm.zero_grad()
    credit, total = assign_credit(objective, rollout), 0.0
    for rows in cuts(rollout, parts):
        part = rollout.at(rows)
        loss, _ = policy_loss(objective, scene.policy.evaluate(part), part, credit.at(rows))
        loss.backward()
        total += loss.item()
    return total, gradients(lm)


def gradients(lm) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in lm.named_parameters()}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm of b, over all weights together."""
    assert a.keys() == b.keys()
    return (sum((a[k] - b[k]).square().sum() for k in b) / sum(x.square().sum() for x in b.values())).sqrt().item()


def offset(scene: Scene, objective: Objective) -> float:
    """CISPO's value is a weight times log π in TRL and times log π - log π_old here: the same gradient, another constant."""
    if not isinstance(objective.surrogate, StopClip):
        return 0.0
    credit = assign_credit(objective, scene.rollout)
    with torch.no_grad():
        log_ratio = scene.policy.evaluate(scene.rollout).logp - scene.rollout.old.logp
    weight = credit.weight * log_ratio.exp().clamp(max=objective.surrogate.bound)
    return -(weight * credit.advantage * scene.rollout.old.logp).sum().item()


def with_kl(objective: Objective, beta: float) -> Objective:
    """TRL knows beta in every loss of GRPOTrainer; RLOO has it inside the reward."""
    if isinstance(objective.advantage, LeaveOneOut):
        return replace(objective, advantage=LeaveOneOut(beta))
    return replace(objective, regularizers=active((beta, kl_low_variance)))


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_agree(scene, name, beta):
    options, algorithm, changed = CASES[name]
    trainer = trainer_of(scene, leave_one_out=name == "rloo", beta=beta, **options)
    inputs = recorded(trainer, scene)
    objective = with_kl(algorithm.objective(), beta)
    constant = offset(scene, objective)
    for parts in (1,) if name == "bnpo" else (1, 4):
        loss, gradient = theirs(trainer, inputs, parts)
        for own in (1, 2):
            value, slope = ours(scene, objective, own)
            assert value + constant == pytest.approx(loss, rel=TIGHT, abs=TIGHT * abs(constant))
            assert distance(slope, gradient) < TIGHT
    value, slope = ours(scene, with_kl(changed.objective(), beta))
    assert distance(slope, gradient) > 100 * TIGHT


def test_trls_default_kl_is_another_regularizer(scene):
    """`use_bias_correction_kl` multiplies the KL by the ratio; our slot takes that as a function like any other."""

    def corrected(new, rollout, log_ratio):
        return log_ratio.exp() * kl_low_variance(new, rollout, log_ratio)

    trainer = trainer_of(scene, beta=0.5, loss_type="grpo", use_bias_correction_kl=True)
    loss, gradient = theirs(trainer, recorded(trainer, scene))
    plain = GRPO(kl=0.5).objective()
    value, slope = ours(scene, replace(plain, regularizers=((0.5, corrected),)))
    assert value == pytest.approx(loss, rel=TIGHT) and distance(slope, gradient) < TIGHT
    assert distance(ours(scene, plain)[1], gradient) > 100 * TIGHT


FLAT = [*REWARDS[:8], *[0.4] * 4, *REWARDS[12:]]
HOLES = [None if row in (2, 5, 6) else reward for row, reward in enumerate(REWARDS)]


@pytest.mark.parametrize("rewards", [REWARDS, FLAT, HOLES], ids=["all", "flat", "missing"])
@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_advantages_agree(scene, scale, rewards):
    inputs = recorded(trainer_of(scene, rewards, loss_type="grpo", scale_rewards=scale), scene)
    ours = {"group": "group", "none": None, "batch": "global"}[scale]
    found = GroupRelative(ours, ddof=1)(scored(scene, rewards))[:, 0]
    torch.testing.assert_close(found, inputs["advantages"], rtol=TIGHT, atol=1e-6)
    other = GroupRelative(ours, ddof=0) if ours else GroupRelative("group", ddof=1)
    assert (other(scored(scene, rewards))[:, 0] - found).abs().max() > 0.01


@pytest.mark.parametrize("rewards", [REWARDS, FLAT, HOLES], ids=["all", "flat", "missing"])
def test_advantages_of_rloo_agree(scene, rewards):
    inputs = recorded(trainer_of(scene, rewards, leave_one_out=True, beta=0.05), scene)
    found = LeaveOneOut(0.05)(scored(scene, rewards))[:, 0]
    torch.testing.assert_close(found, inputs["advantages"], rtol=TIGHT, atol=2e-6)
    assert (LeaveOneOut(0.04)(scored(scene, rewards))[:, 0] - found).abs().max() > 0.01


def scored(scene: Scene, rewards: list[float | None]) -> Rollout:
    present = torch.tensor([reward is not None for reward in rewards])
    return replace(scene.rollout, reward=torch.tensor([reward or 0.0 for reward in rewards]), present=present)


@pytest.mark.parametrize(
    ("algorithm", "why", "options"),
    [
        (DAPO(high=0.2), "flat", {"loss_type": "dapo"}),
        (GRPO(kl=0), "missing", {"loss_type": "grpo"}),
        (DAPO(high=0.2), "missing", {"loss_type": "dapo"}),
        (GRPO(kl=0), "cut", {"loss_type": "grpo", "mask_truncated_completions": True}),
        (DAPO(high=0.2), "cut", {"loss_type": "dapo", "mask_truncated_completions": True}),
    ],
)
def test_what_does_not_train_leaves_our_denominators(scene, algorithm, why, options):
    """In TRL it stays there, except in `dapo`'s number of tokens where a completion was cut: a factor on the whole gradient."""
    rewards = {"flat": FLAT, "missing": HOLES, "cut": REWARDS}[why]
    rollout = scored(scene, rewards)
    assert rollout.cut is not None and 0 < rollout.cut.sum() < len(REWARDS)
    if why == "cut":  # what the policy does itself with train_cut=False
        rollout = replace(rollout, mask=rollout.mask & ~rollout.cut[:, None])
    trainer = trainer_of(scene, rewards, **options)
    loss, gradient = theirs(trainer, recorded(trainer, scene))
    objective = algorithm.objective()
    counted = scene.rollout.mask if why != "cut" or options["loss_type"] == "grpo" else rollout.mask
    trained = assign_credit(objective, rollout).weight > 0
    if objective.weighting is by_decision:
        factor = (counted.sum() / trained.sum()).item()
    else:
        factor = (counted.any(1).sum() / trained.any(1).sum()).item()
    assert (factor == 1) == (why == "cut" and objective.weighting is by_decision)
    value, slope = ours(replace(scene, rollout=rollout), objective)
    assert value == pytest.approx(factor * loss, rel=TIGHT)
    assert distance(slope, {name: factor * x for name, x in gradient.items()}) < TIGHT
