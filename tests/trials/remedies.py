"""Three remedies that the tests of the engine share."""

from __future__ import annotations

from torch import nn

from lightning_gradwatch.core.records import Cause
from lightning_gradwatch.trials.model import CannotApply, Remedy, TrialModel


def he_init(trial_model: TrialModel) -> None:
    """He's initialisation of every linear layer."""
    for module in trial_model.model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)


def to_relu(trial_model: TrialModel) -> None:
    """ReLU in the place of every sigmoid, with He's initialisation."""
    places = [(p, n) for p in trial_model.model.modules() for n, m in p.named_children() if isinstance(m, nn.Sigmoid)]
    if not places:
        raise CannotApply("no sigmoids")
    for parent, name in places:
        setattr(parent, name, nn.ReLU())
    he_init(trial_model)


def lower_rate(trial_model: TrialModel) -> None:
    """A tenth of the learning rate."""
    trial_model.lr_scale = 0.1


def with_norm(trial_model: TrialModel) -> None:
    """A LayerNorm before every sigmoid."""
    for parent in list(trial_model.model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Sigmoid):
                setattr(parent, name, nn.Sequential(nn.LayerNorm(64), module))


_CAUSES: frozenset[Cause] = frozenset({"saturating_activation", "small_init", "no_skip_or_norm"})
HE = Remedy("init.he", "He initialisation", "nn.init.kaiming_normal_(m.weight)", he_init, causes=_CAUSES)
RELU = Remedy("activation.relu", "ReLU for sigmoid", "nn.ReLU()", to_relu, causes=_CAUSES)
NORM = Remedy("norm.layer", "LayerNorm", "nn.LayerNorm(64)", with_norm, causes=_CAUSES)
LOWER = Remedy("lr.tenth", "a tenth of the rate", "lr=0.1 * lr", lower_rate, kinds=frozenset({"nonfinite"}))
REMEDIES = (RELU, HE, NORM, LOWER)
