"""Clipping against explosions.

Sources: Pascanu et al., ICML 2013 (norm). Seetharaman et al., MLSP 2020 (percentile). Brock et al., ICML 2021 (AGC).
"""

from __future__ import annotations

from lightning_gradwatch.core.clip import AGC, ClipPolicy, MaxNorm, Percentile
from lightning_gradwatch.trials.model import Remedy, TrialModel


def _clip(variant: str, name: str, policy: ClipPolicy, code: str) -> Remedy:
    def apply(trial_model: TrialModel) -> None:
        trial_model.clip = policy

    return Remedy(
        f"clip.{variant}",
        name,
        code,
        apply,
        frozenset({"learning_rate", "bad_data"}),
        frozenset({"exploding", "nonfinite"}),
    )


REMEDIES = (
    _clip(
        "norm",
        "gradients clipped to a norm of 1",
        MaxNorm(1.0),
        "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # Trainer(gradient_clip_val=1.0)",
    ),
    _clip(
        "percentile",
        "gradients clipped at a percentile of their own history (AutoClip)",
        Percentile(),
        'callback = GradWatch(auto_clip="percentile")  # Trainer(callbacks=[callback])',
    ),
    _clip(
        "agc",
        "gradients clipped by unit (AGC)",
        AGC(),
        'callback = GradWatch(auto_clip="agc")  # Trainer(callbacks=[callback])',
    ),
)
