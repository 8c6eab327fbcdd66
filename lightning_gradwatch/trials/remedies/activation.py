"""Activations that pass the gradient on.

Sources: Glorot & Bengio, AISTATS 2010 (sigmoids saturate). Glorot et al., AISTATS 2011 (ReLU). He et al., ICCV 2015.
Maas et al., ICML 2013 (LeakyReLU). Elfwing et al., Neural Networks 2018 (SiLU).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lightning_gradwatch.trials.model import CannotApply, Remedy, TrialModel
from lightning_gradwatch.trials.remedies import functional, init
from lightning_gradwatch.trials.remedies.surgery import Trace, become, joins, kind_of, paths, trace

_SQUASHING = (nn.Sigmoid, nn.Tanh, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid)
_NEGATIVE_FLAT = (nn.ReLU, nn.ReLU6)


def swap(old: tuple[type[nn.Module], ...], new: type[nn.Module]) -> Callable[[TrialModel], None]:
    """Swap hidden activations. Those of the output and those that gate another tensor stay."""

    def apply(trial_model: TrialModel) -> None:
        seen = trace(trial_model)
        found = [m for m in seen.ran(old) if type(m) in old and type(m) is not new]
        chosen = [m for m in found if all(_is_hidden(seen, call.after) for call in seen.of(m))]
        names = {kind.__name__.lower() for kind in old} - {new.__name__.lower()}
        rewritten = functional.rewritten(seen, names, new)
        if not chosen and not rewritten:
            kinds = ", ".join(kind.__name__ for kind in old if kind is not new)
            raise CannotApply("only at the output or as gates" if found else f"no hidden {kinds} that can be swapped")
        trial_model.code = _code(trial_model.model, chosen, [module for module, _ in rewritten], new)
        for module in chosen:
            become(module, new())
        for module, forward in rewritten:
            vars(module)["forward"] = forward

    return apply


def _code(model: nn.Module, swapped: list[nn.Module], rewritten: list[nn.Module], new: type[nn.Module]) -> str:
    function = functional.FUNCTIONS[new].__name__
    lines = [
        f"# {type(m).__name__}.forward: torch.nn.functional.{function} for its hidden activations" for m in rewritten
    ]
    if swapped:
        lines += [
            f"for path in {paths(model, swapped, with_aliases=True)}:",
            '    parent, _, name = path.rpartition(".")',
            f"    setattr(model.get_submodule(parent), name, nn.{new.__name__}())",
        ]
    return "\n".join(lines)


def _is_hidden(seen: Trace, node: object) -> bool:
    if node is None or node in seen.tail:
        return False
    return not all(kind_of(reader) == "mul" and joins(reader) for reader in seen.readers(node))


def _drawn(swapping: Callable[[TrialModel], None], draw: str) -> Callable[[TrialModel], None]:
    def apply(trial_model: TrialModel) -> None:
        init.drawable(trial_model.model)
        swapping(trial_model)
        code = trial_model.code
        init.reinitialise(trial_model, _DRAWS[draw])
        trial_model.code = f"{code}\n{trial_model.code}"

    return apply


_DRAWS = {"He": init.HE, "Xavier": init.XAVIER}


def _swap(variant: str, old: tuple[type[nn.Module], ...], new: type[nn.Module], draw: str = "") -> Remedy:
    kept = tuple(kind for kind in old if kind is not new)
    name = f"{new.__name__} for {'ReLU' if nn.ReLU in old else 'sigmoids' if new is nn.Tanh else 'sigmoids and tanh'}"
    apply = swap(kept, new)
    if draw:
        apply = _drawn(apply, draw)
        name = f"{new.__name__} with {draw} initialisation"
    dying = nn.ReLU in old
    return Remedy(
        f"activation.{variant}",
        name,
        "",  # it depends on the model
        apply,
        frozenset({"dead_relu"}) if dying else frozenset({"saturating_activation", "large_init", "cliff"}),
        frozenset({"dead"}) if dying else frozenset({"vanishing"}),
    )


REMEDIES = (
    _swap("relu_he", _SQUASHING, nn.ReLU, "He"),
    _swap("silu_he", _SQUASHING, nn.SiLU, "He"),
    _swap("tanh_xavier", _SQUASHING, nn.Tanh, "Xavier"),
    _swap("relu", _SQUASHING, nn.ReLU),
    _swap("silu", _SQUASHING, nn.SiLU),
    _swap("tanh", _SQUASHING, nn.Tanh),
    _swap("leaky_relu", _NEGATIVE_FLAT, nn.LeakyReLU),
    _swap("gelu", _NEGATIVE_FLAT, nn.GELU),
)
