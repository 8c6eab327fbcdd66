"""Recurrent layers that remember.

Sources: Jozefowicz et al., ICML 2015 (forget bias). Tallec & Ollivier, ICLR 2018 (bias of about log T). Saxe et al.,
ICLR 2014 (orthogonal). Le et al., arXiv:1504.00941, 2015 (identity). Cho et al., EMNLP 2014 (GRU).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_gradwatch.core.records import AlertKind, Cause
from lightning_gradwatch.trials.model import CannotApply, Remedy, TrialModel
from lightning_gradwatch.trials.remedies.surgery import RECURRENT, become, paths, perform, refuse_closed, trace

_PLAIN = (nn.RNN, nn.RNNCell)
_GATED = (nn.LSTM, nn.LSTMCell, nn.GRU, nn.GRUCell)
_CAUSES: frozenset[Cause] = frozenset({"recurrence"})
_KINDS: frozenset[AlertKind] = frozenset({"vanishing_through_time"})


class _LstmForRnn(nn.LSTM):
    """Returns its hidden state alone, as ``nn.RNN`` does."""

    def forward(self, input: Any, hx: None = None) -> Any:  # type: ignore[override]  # noqa: A002
        output, (hidden, _) = super().forward(input, hx)
        return output, hidden


def _found(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[Any]:
    """The trained recurrent layers of these very classes.

    Raises:
        CannotApply: If there is none.
    """
    refuse_closed(model)
    found = [m for m in model.modules() if type(m) in kinds and all(p.requires_grad for p in m.parameters())]
    if not found:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise CannotApply(f"no trained {names} without reparametrisation")
    return found


def _num_steps(trial_model: TrialModel) -> int:
    """Length of the longest sequence."""
    if trial_model.num_time_steps > 1:
        return trial_model.num_time_steps
    seen, lengths = trace(trial_model), [0]
    for module in seen.ran(RECURRENT):
        calls = seen.of(module)
        given = calls[0].given
        if isinstance(module, nn.RNNBase) and given is not None:
            packed: Any = calls[0].args[0] if calls[0].args else None
            time = 1 if module.batch_first and given.ndim == 3 else 0
            lengths.append(len(packed.batch_sizes) if isinstance(packed, PackedSequence) else given.shape[time])
        else:
            lengths.append(len(calls))
    if max(lengths) < 2:
        raise CannotApply("sequences of one step")
    return max(lengths)


def _remember(module: Any, num_steps: int) -> None:
    """Draw the biases of the gates for memories of up to ``num_steps`` steps; elsewhere they stay."""
    size, is_lstm = module.hidden_size, isinstance(module, (nn.LSTM, nn.LSTMCell))
    with torch.no_grad():
        for name, bias in module.named_parameters():
            if name.startswith("bias_ih"):
                keep = torch.rand(size, device=bias.device).mul(max(num_steps - 2, 0)).add(1).log().to(bias)
                bias[size : 2 * size] = keep
                if is_lstm:
                    bias[:size] = -keep
            elif name.startswith("bias_hh"):
                bias[: 2 * size] = 0


def _forget_bias(trial_model: TrialModel) -> None:
    found = [m for m in _found(trial_model.model, _GATED) if m.bias]
    if not found:
        raise CannotApply("the recurrent layers have no biases")
    num_steps = _num_steps(trial_model)
    for module in found:
        _remember(module, num_steps)
    trial_model.code = _biases(num_steps)


def _options(module: Any) -> dict[str, Any]:
    weight = next(module.parameters())
    options = {"bias": True, "device": weight.device, "dtype": weight.dtype}
    if isinstance(module, nn.RNNBase):
        names = ("num_layers", "batch_first", "dropout", "bidirectional")
        options.update({name: getattr(module, name) for name in names})
    return options


def _to_gru(trial_model: TrialModel) -> None:
    found, num_steps = _found(trial_model.model, _PLAIN), _num_steps(trial_model)
    for module in found:
        kind = nn.GRU if isinstance(module, nn.RNN) else nn.GRUCell
        become(module, kind(module.input_size, module.hidden_size, **_options(module)))
        _remember(module, num_steps)
    kinds = sorted({type(module).__name__ for module in found})
    trial_model.code = "".join(map(_replacement, kinds)) + _biases(num_steps)


def _to_lstm(trial_model: TrialModel) -> None:
    found, num_steps, seen = _found(trial_model.model, (nn.RNN,)), _num_steps(trial_model), trace(trial_model)
    calls = [call for module in found for call in seen.of(module)]
    if any((len(c.args) > 1 and c.args[1] is not None) or c.kwargs.get("hx") is not None for c in calls):
        raise CannotApply("a hidden state is handed in, where an LSTM has a pair of states")
    for module in found:
        become(module, _LstmForRnn(module.input_size, module.hidden_size, **_options(module)))
        _remember(module, num_steps)
    trial_model.code = _replacement("LSTM") + _biases(num_steps)


def _each_hidden(module: Any, draw: Callable[[Tensor], Any]) -> None:
    for name, weight in module.named_parameters():
        if name.startswith("weight_hh"):
            for part in weight.detach().split(module.hidden_size):
                draw(part)


def _or_loops(trial_model: TrialModel, kinds: tuple[type[nn.Module], ...], line: str) -> list[Any]:
    """The recurrent layers; without any, hand-written ones: square linear layers that run at every time step."""
    try:
        return _found(trial_model.model, kinds)
    except CannotApply:
        seen = trace(trial_model)
        loops = [m for m in seen.ran((nn.Linear,)) if seen.is_loop(m) and m.in_features == m.out_features]
        loops = [m for m in loops if type(m) is nn.Linear and m.weight.requires_grad]
        if not loops:
            raise
        perform(trial_model, f"for m in map(model.get_submodule, {paths(trial_model.model, loops)}):\n    {line}")
        return []


def _orthogonal(trial_model: TrialModel) -> None:
    for module in _or_loops(trial_model, _PLAIN + _GATED, "nn.init.orthogonal_(m.weight)"):
        _each_hidden(module, nn.init.orthogonal_)


def _identity(trial_model: TrialModel) -> None:
    for module in _or_loops(trial_model, _PLAIN, "nn.init.eye_(m.weight)"):
        _each_hidden(module, nn.init.eye_)
        module.nonlinearity = "relu"
        if isinstance(module, nn.RNN):
            module.mode = "RNN_RELU"
        for name, bias in module.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(bias)


_BIASES = """
for m in model.modules():
    if isinstance(m, (nn.LSTM, nn.LSTMCell, nn.GRU, nn.GRUCell)):
        for name, b in m.named_parameters():
            n = m.hidden_size
            if name.startswith("bias_ih"):
                b.data[n : 2 * n] = torch.log(1 + (T - 2) * torch.rand(n))
                if isinstance(m, (nn.LSTM, nn.LSTMCell)):
                    b.data[:n] = -b.data[n : 2 * n]
            elif name.startswith("bias_hh"):
                b.data[: 2 * n] = 0"""

_REPLACE = """for name, m in list(model.named_modules()):
    if type(m) is nn.{old}:{note}
        parent, _, child = name.rpartition(".")
        options = dict({options})
        setattr(model.get_submodule(parent), child, nn.{new}(m.input_size, m.hidden_size, **options))
"""
_OPTIONS = """
            num_layers=m.num_layers, batch_first=m.batch_first, dropout=m.dropout, bidirectional=m.bidirectional
        """


def _biases(num_steps: int) -> str:
    return f"T = {num_steps}  # time steps{_BIASES}"


def _replacement(new: str) -> str:
    is_cell = new.endswith("Cell")
    note = "  # returns (output, (hidden, cell)) instead of (output, hidden)" if new == "LSTM" else ""
    options = "" if is_cell else _OPTIONS
    return _REPLACE.format(old="RNNCell" if is_cell else "RNN", new=new, note=note, options=options)


def _remedy(variant: str, name: str, code: str, apply: Callable[[TrialModel], None]) -> Remedy:
    return Remedy(f"recurrent.{variant}", name, code, apply, _CAUSES, _KINDS)


REMEDIES = (
    _remedy("forget_bias", "forget-gate biases of about log(time steps)", _biases(100), _forget_bias),
    _remedy(
        "lstm",
        "LSTM with forget-gate biases of about log(time steps) for RNN",
        _replacement("LSTM") + _biases(100),
        _to_lstm,
    ),
    _remedy(
        "gru",
        "GRU with update-gate biases of about log(time steps) for RNN",
        _replacement("GRU") + _biases(100),
        _to_gru,
    ),
    _remedy(
        "orthogonal",
        "orthogonal recurrent weights",
        'for name, p in model.named_parameters():\n    if "weight_hh" in name:\n'
        "        for part in p.data.split(p.shape[1]):\n            nn.init.orthogonal_(part)",
        _orthogonal,
    ),
    _remedy(
        "identity",
        "a recurrence that starts as the identity",
        "for m in model.modules():\n    if type(m) in (nn.RNN, nn.RNNCell):\n"
        '        m.nonlinearity, m.mode = "relu", "RNN_RELU"  # or nn.RNN(..., nonlinearity="relu")\n'
        "        for name, p in m.named_parameters():\n"
        '            if "weight_hh" in name:\n                nn.init.eye_(p)\n'
        '            elif "bias" in name:\n                nn.init.zeros_(p)',
        _identity,
    ),
)
