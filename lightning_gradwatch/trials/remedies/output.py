"""Scores instead of probabilities for a loss that wants scores."""

from __future__ import annotations

from torch import nn

from lightning_gradwatch.trials.model import CannotApply, Remedy, TrialModel
from lightning_gradwatch.trials.remedies.surgery import become, kind_of, trace

_FUSED = {nn.Softmax: "logsoftmax", nn.Sigmoid: "binarycrossentropywithlogits"}


def _to_logits(trial_model: TrialModel) -> None:
    """Take out a softmax or sigmoid whose output goes into a loss that has its own."""
    seen = trace(trial_model)
    found = []
    for module in seen.ran(tuple(_FUSED)):
        readers = [kind_of(r) for call in seen.of(module) for r in seen.readers(call.after)]
        if readers and all(kind == _FUSED[type(module)] for kind in readers):
            found.append(module)
    if not found:
        raise CannotApply("no Softmax or Sigmoid in front of a loss on logits")
    for module in found:
        become(module, nn.Identity())


REMEDIES = (
    Remedy(
        "output.logits",
        "no softmax or sigmoid before a loss that has its own",
        "for parent in list(model.modules()):\n    for name, m in parent.named_children():\n"
        "        if isinstance(m, (nn.Softmax, nn.Sigmoid)):  # the last one\n"
        "            setattr(parent, name, nn.Identity())",
        _to_logits,
        frozenset({"saturated_output"}),
        frozenset({"stalled"}),
    ),
)
