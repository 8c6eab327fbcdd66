from __future__ import annotations

import copy
import io
import pickle
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.core.hooks import ModuleHooks
from lightning_gradwatch.core.probing import make_probe

KINDS = [
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
]  # fmt: skip


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def entries_in(model: nn.Module) -> int:
    """Hooks on a model and marks of them, and whatever hides them."""
    found = [getattr(module, kind) for module in model.modules() for kind in KINDS]
    return sum(len(entries) + len(vars(entries)) for entries in found)


def hang_on(model: nn.Module, seen: list[Any] | None = None) -> ModuleHooks:
    hooks, seen = ModuleHooks(), [] if seen is None else seen
    hooks.hang([(m, lambda *given: seen.append(given)) for m in model.modules()])
    hooks.hang([(m, lambda *given: None) for m in model.modules()], before=True)
    return hooks


def saved(model: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(model, file)
    return file.getvalue()


def loaded(data: bytes) -> nn.Module:
    model: nn.Module = torch.load(io.BytesIO(data), weights_only=False)
    return model


COPIES: list[Callable[[nn.Module], nn.Module]] = [
    copy.deepcopy,
    lambda model: loaded(saved(model)),
    *(lambda model, p=p: pickle.loads(pickle.dumps(model, p)) for p in range(2, pickle.HIGHEST_PROTOCOL + 1)),
    lambda model: pickle.loads(pickle._dumps(model)),  # type: ignore[attr-defined]  # written in Python
]


def test_hooks_are_called_as_those_that_torch_registers() -> None:
    model, seen, oracle = nn.Linear(4, 2), [], []  # type: ignore[var-annotated]
    hooks = hang_on(model, seen)
    model.register_forward_hook(lambda *given: oracle.append(given), with_kwargs=True)
    model(input=torch.ones(1, 4))
    assert [part[:3] for part in seen] == [part[:3] for part in oracle]
    assert seen[0][3] is oracle[0][3]
    hooks.take_down()
    model(torch.ones(1, 4))
    assert (len(seen), len(oracle)) == (1, 2)


@pytest.mark.parametrize("duplicate", COPIES)
def test_no_copy_and_no_file_has_anything_of_ours(duplicate: Any) -> None:
    model = small()
    hooks = hang_on(model)
    twin = duplicate(model)
    assert entries_in(twin) == 0
    assert entries_in(model) > 0
    hooks.close()
    assert entries_in(model) == 0


def test_a_file_is_the_one_that_would_have_been_written_without_us() -> None:
    model = small()
    before = pickle.dumps(model)
    hooks = hang_on(model)
    assert pickle.dumps(model) == before
    hooks.take_down()
    assert pickle.dumps(model) == before


class Instrumented(nn.Linear):
    """Keeps a hook of its own, and its handle."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.handle = self.register_forward_hook(Instrumented.count)
        self.calls = 0

    @staticmethod
    def count(module: Any, args: Any, output: Any) -> None:
        module.calls += 1


class OwnCopy(Instrumented):
    """Copies itself attribute by attribute."""

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnCopy:
        twin = memo[id(self)] = OwnCopy.__new__(OwnCopy)
        for name, value in self.__dict__.items():
            twin.__dict__[name] = copy.deepcopy(value, memo)
        return twin


@pytest.mark.parametrize("kind", [Instrumented, OwnCopy])
@pytest.mark.parametrize("duplicate", COPIES)
def test_hooks_of_others_are_copied_with_their_handles(kind: Any, duplicate: Any) -> None:
    model = kind()
    hooks = hang_on(model)
    twin = duplicate(model)
    twin(torch.ones(1, 4))
    assert (twin.calls, len(twin._forward_hooks), len(twin._forward_hooks_with_kwargs)) == (1, 1, 0)
    twin.handle.remove()
    assert not twin._forward_hooks
    hooks.take_down()
    model.handle.remove()
    assert not model._forward_hooks


def test_a_shallow_copy_shares_its_hooks_as_without_us() -> None:
    model = nn.Linear(4, 2)
    hooks = hang_on(model)
    twin = copy.copy(model)
    assert twin._forward_hooks is model._forward_hooks
    hooks.close()
    assert entries_in(twin) == 0


def qat(model: nn.Module) -> str:
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
    prepared = torch.ao.quantization.prepare_qat(model.train(), inplace=False)
    del model.qconfig
    return str([[hook for m in prepared.modules() for hook in m._forward_hooks.values()], entries_in(prepared)])


X = torch.ones(1, 4)
TOOLS: dict[str, Callable[[nn.Module], str]] = {
    "jit.script": lambda model: str(torch.jit.script(model).inlined_graph),
    "jit.trace": lambda model: re.sub(r"mangle_\d+", "", str(torch.jit.trace(model, X).inlined_graph)),  # type: ignore[no-untyped-call]
    "fx": lambda model: torch.fx.symbolic_trace(model).code,
    "export": lambda model: str(torch.export.export(model, (X,)).graph),
    "strict export": lambda model: str(torch.export.export(model, (X,), strict=True).graph),
    "quantization": qat,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tool", TOOLS)
def test_tools_that_rewrite_a_network_make_the_same_of_it(tool: str) -> None:
    model = small()
    alone = TOOLS[tool](model)
    probe = make_probe(model)
    probe.attach(thorough=True, causes=True)
    assert TOOLS[tool](model) == alone
    assert probe.failure is None


def test_handles_of_others_go_on_while_ours_are_there() -> None:
    model = nn.Linear(4, 2)
    before = model.register_forward_hook(lambda *_: None)
    hooks = hang_on(model)
    meanwhile = model.register_forward_pre_hook(lambda *_: None)
    before.remove()
    assert len(model._forward_hooks) == 1
    hooks.take_down()
    assert len(model._forward_pre_hooks) == 1
    meanwhile.remove()
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("replacement", [OrderedDict, dict])
def test_hooks_go_where_they_were_hung_whatever_others_did_meanwhile(replacement: Any) -> None:
    model = nn.Linear(4, 2)
    hooks, kept = hang_on(model), model._forward_hooks
    model._forward_hooks = replacement()  # how all hooks are dropped in many a snippet
    hooks.take_down()
    assert not kept
    hooks.hang([(model, lambda *_: None)])  # torch cannot hang one on a plain dict either
    assert bool(model._forward_hooks) == (replacement is OrderedDict)
    hooks.close()
    assert not model._forward_hooks


def test_two_sets_of_hooks_hide_each_other_until_both_are_closed() -> None:
    model = small()
    first, second = hang_on(model), hang_on(model)
    assert entries_in(copy.deepcopy(model)) == 0
    first.close()
    assert entries_in(copy.deepcopy(model)) == 0
    second.close()
    assert entries_in(model) == 0


def test_others_are_told_from_ours() -> None:
    model = nn.Linear(4, 2)
    hooks = hang_on(model)
    assert hooks.are_alone(model)
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not hooks.are_alone(model)
    everywhere.remove()
    theirs: list[RemovableHandle] = [
        model.register_forward_hook(lambda *_: None),
        model.register_forward_pre_hook(lambda *_: None),
        model.register_full_backward_hook(lambda *_: None),
        model.register_full_backward_pre_hook(lambda *_: None),
    ]
    for handle in theirs:
        assert not hooks.are_alone(model)
        handle.remove()
        assert hooks.are_alone(model) == (handle is theirs[-1])


def test_a_copy_in_another_thread_is_whole_while_hooks_come_and_go() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(50)])
    hooks, twins, failures, done = hang_on(model), [], [], threading.Event()  # type: ignore[var-annotated]

    def duplicate() -> None:
        try:
            while not done.is_set():
                twins.append(entries_in(copy.deepcopy(model)))
        except Exception as failure:
            failures.append(failure)

    thread = threading.Thread(target=duplicate)
    thread.start()
    pairs: list[tuple[nn.Module, Callable[..., Any]]] = [(m, lambda *_: None) for m in model]
    while len(twins) < 20 and not failures:
        hooks.take_down()
        hooks.hang(pairs)
    done.set()
    thread.join()
    assert failures == []
    assert set(twins) == {0}


def test_a_hook_that_somebody_has_kept_does_nothing_later() -> None:
    model = small()
    probe = make_probe(model)
    probe.attach()
    kept = list(model[0]._forward_hooks.items())  # type: ignore[index]
    probe.detach()
    model[0]._forward_hooks.update(kept)  # type: ignore[index]
    model(X).sum().backward()
    assert probe.order.ran == set()
    assert probe.account.norm("0") is None
    assert probe.failure is None


def test_a_tensor_that_is_saved_does_not_warn_of_our_hook() -> None:
    class Prompt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 3))

        def forward(self) -> Tensor:
            return self.weight

    model = Prompt()
    probe = make_probe(model)
    probe.attach()
    assert model()._backward_hooks
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tensor in (model.weight, model() * 2):
            torch.save(tensor, io.BytesIO())
