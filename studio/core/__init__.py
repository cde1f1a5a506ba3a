"""Formulas: tensors in, tensors out; no models, files or devices."""

from studio.core.advantage import GAE, BatchWhitened, GroupRelative, LeaveOneOut
from studio.core.critic import ValueLoss
from studio.core.declare import needs, span
from studio.core.gate import EngineCorrection, EveryGate, TopEntropy, informative_groups
from studio.core.loss import Objective, assign_credit, check_fit, policy_loss
from studio.core.ratio import decision_ratio, fit_ratio, no_ratio, sample_ratio, total_ratio
from studio.core.regularizer import Fading, active, entropy, kl_low_variance, kl_plain, kl_squared, ratio_variance
from studio.core.stats import metrics, total
from studio.core.surrogate import Clip, KeepGradientClip, StopClip, plain_ratio
from studio.core.weighting import ByLength, by_decision, by_sample

__all__ = [
    "GAE",
    "BatchWhitened",
    "ByLength",
    "Clip",
    "EngineCorrection",
    "EveryGate",
    "Fading",
    "GroupRelative",
    "KeepGradientClip",
    "LeaveOneOut",
    "Objective",
    "StopClip",
    "TopEntropy",
    "ValueLoss",
    "active",
    "assign_credit",
    "by_decision",
    "by_sample",
    "check_fit",
    "decision_ratio",
    "entropy",
    "fit_ratio",
    "informative_groups",
    "kl_low_variance",
    "kl_plain",
    "kl_squared",
    "metrics",
    "needs",
    "no_ratio",
    "plain_ratio",
    "policy_loss",
    "ratio_variance",
    "sample_ratio",
    "span",
    "total",
    "total_ratio",
]
