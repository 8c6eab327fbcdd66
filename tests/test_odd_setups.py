"""One thing odd at a time, in any combination with ordinary settings: ``fit`` ends as without us, weights equal."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest.mock import MagicMock

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset

from lightning_gradwatch import GradWatch, GradWatchWarning

pytestmark = pytest.mark.slow

STEPS = 8
SIZE = 8
CLASSES = 4


# ------------------------------------------------------------------------------------------------ networks


class Unlisted(nn.Module):
    """Tells nobody of its parameters, and takes no ``recurse``."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self._modules["inner"](x)  # type: ignore[misc]
        return output

    def parameters(self) -> Iterator[nn.Parameter]:  # type: ignore[override]
        return iter(())


class OldNames(Unlisted):
    """The signatures of torch 1.x."""

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, nn.Parameter]]:  # type: ignore[override]
        yield from super().named_parameters(prefix, recurse)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return nn.Module.parameters(self, recurse)


class Shadowed(Unlisted):
    """A property has the name of a submodule."""

    @property  # type: ignore[override]  # torch allows it
    def inner(self) -> list[Any]:
        return [self._modules["inner"]]

    @inner.setter
    def inner(self, module: nn.Module) -> None:
        self.register_module("inner_", module)

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self._modules["inner"] = nn.Linear(SIZE, SIZE)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return nn.Module.parameters(self, recurse)


class KeyErrors(OldNames):
    """Looks names up in a dict."""

    def __getattr__(self, name: str) -> Any:
        return self.__dict__["_modules"][name]


class Unprintable(OldNames):
    """Raises wherever one looks at it as an object."""

    def __repr__(self) -> str:
        raise TypeError("no repr")

    def __len__(self) -> int:
        raise TypeError("no length")

    def __bool__(self) -> bool:
        raise TypeError("neither true nor false")

    def __eq__(self, other: object) -> bool:
        raise TypeError("equal to nothing")

    __hash__ = nn.Module.__hash__


class InPlaceLSTM(nn.LSTM):
    """Works in place on what it is given."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        return super().forward(functional.dropout(x, 0.1, self.training, inplace=True), hx)


class Recurrent(nn.Module):
    """Reads the raw batch as a sequence."""

    def __init__(self, rnn: type[nn.RNNBase] = InPlaceLSTM) -> None:
        super().__init__()
        self.rnn = rnn(1, SIZE, batch_first=True)  # type: ignore[call-arg, arg-type]

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x.clone()[:, :, None])
        last: Tensor = output[:, -1]
        return last


class Numpy(nn.LSTM):
    """Looks at its input with numpy, and insists on raw data."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        assert not x.requires_grad
        self.mean = float(x.numpy().mean())
        return super().forward(x, hx)


class Tied(nn.Module):
    """Layers that share every parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE, bias=False) for _ in range(4))
        for layer in self.layers:
            layer.weight = self.layers[0].weight

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x


class Copying(nn.Module):
    """Copies itself, as an EMA teacher does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        twin = copy.deepcopy(self.inner)
        assert not twin._forward_hooks
        assert not twin._forward_pre_hooks
        with torch.no_grad():
            twin(x)
        output: Tensor = self.inner(x)
        return output


class Checkpointed(nn.Module):
    """Runs its forward pass twice."""

    def __init__(self, reentrant: bool = False) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU(inplace=True))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.reentrant)
        return output


class Strange(nn.Module):
    """Parameters of odd kinds: none, empty, complex, of whole numbers, frozen, unused."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(SIZE, SIZE)
        self.register_parameter("nothing", None)
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.turn = nn.Parameter(torch.ones(SIZE, dtype=torch.complex64))
        self.count = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
        self.unused = nn.Linear(3, 3)
        self.frozen = nn.Linear(SIZE, SIZE).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = (self.frozen(self.inner(x)) * self.turn).abs()
        return output


class Lookup(nn.Module):
    """Sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(10, SIZE, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.table((x.abs() * 3).long().clamp(max=9))
        return output


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unlisted parameters": Unlisted,
    "old signatures": OldNames,
    "shadowed by a property": Shadowed,
    "KeyError": KeyErrors,
    "raises as an object": Unprintable,
    "LSTM in place": Recurrent,
    "LSTM with numpy": lambda: Recurrent(Numpy),
    "plain GRU on raw data": lambda: Recurrent(nn.GRU),
    "tied": Tied,
    "copies itself": Copying,
    "checkpointed": Checkpointed,
    "reentrant": lambda: Checkpointed(True),
    "strange parameters": Strange,
    "lazy": lambda: nn.LazyLinear(SIZE),
    "no parameters": nn.Tanh,
    "sparse": Lookup,
    "double": lambda: nn.Linear(SIZE, SIZE).double(),
    "bfloat16": lambda: nn.Linear(SIZE, SIZE).bfloat16(),
}


# ------------------------------------------------------------------------------------------------ batches


@dataclasses.dataclass
class Data:
    x: Tensor
    y: Tensor


class Thing:
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y


class Touchy(dict[str, Any]):
    """Refuses to be looked into."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.x, self.y = x, y

    def values(self) -> Any:
        raise RuntimeError("hands off")

    items = __iter__ = __len__ = values  # type: ignore[assignment]


class Refuses(Tensor):
    """A tensor with which nothing can be done."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.detach or getattr(func, "__name__", "") == "__get__":
            return super().__torch_function__(func, types, args, kwargs or {})
        raise RuntimeError(f"{func} is refused")


def with_cycle(x: Tensor, y: Tensor) -> Any:
    batch: list[Any] = [x, y]
    batch.append(batch)
    return batch


BATCHES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dataclass": Data,
    "object": Thing,
    "refuses to be looked into": Touchy,
    "whole numbers": lambda x, y: {"x": x, "y": y, "ids": [[list(range(50))] * 50]},
    "others beside it": lambda x, y: {"x": x, "y": y, "names": ["a", None, b"c", object(), print]},
    "nested": lambda x, y: {"x": x, "y": y, "n": torch.nested.nested_tensor([x[0], x[0, :2]])},
    "sparse": lambda x, y: {"x": x, "y": y, "n": x.to_sparse()},
    "mkldnn": lambda x, y: {"x": x, "y": y, "n": x.to_mkldnn()},
    "meta": lambda x, y: {"x": x, "y": y, "n": x.to("meta")},
    "a tensor that refuses": lambda x, y: {"x": x, "y": y, "n": x.as_subclass(Refuses)},
    "NaN that nobody uses": lambda x, y: {"x": x, "y": y, "n": x * torch.nan},
    "a cycle": with_cycle,
    "complex": lambda x, y: {"x": x, "y": y, "n": x.to(torch.complex64)},
    "empty": lambda x, y: {"x": x, "y": y, "n": x[:0]},
}


def unpack(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, (list, tuple)):
        return batch[0], batch[1]
    if isinstance(batch, dict) and not isinstance(batch, Touchy):
        return batch["x"], batch["y"]
    return batch.x, batch.y


# ------------------------------------------------------------------------------------------------ optimizers


class Aux(torch.optim.Optimizer):
    """Two moments and odd groups, as many optimizers beyond Adam keep them."""

    def __init__(self, parameters: Iterable[nn.Parameter], **options: Any) -> None:
        super().__init__([{"params": list(parameters), **options}], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        for p in [p for group in self.param_groups for p in group["params"] if p.grad is not None]:
            state = self.state[p]
            grad = p.grad.to_dense() if p.grad.is_sparse else p.grad
            first = state.setdefault("exp_avg", torch.zeros_like(p))
            second = state.setdefault("exp_avg_sq", torch.zeros(()))
            first.lerp_(grad, 0.1)
            second.lerp_(grad.abs().square().mean(), 0.1)
            p.sub_(1e-3 * first / (second.sqrt() + 1e-8))
        return loss


class SAM(torch.optim.SGD):
    """Evaluates its closure twice."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        pushes = [(p, 0.05 * p.grad.clone()) for g in self.param_groups for p in g["params"] if p.grad is not None]
        with torch.no_grad():
            for p, push in pushes:
                p.add_(push)
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for p, push in pushes:
                p.sub_(push)
        super().step()
        return loss


class Rude(torch.optim.SGD):
    """Has no state that can be asked, and hands its gradients to nobody."""

    @property  # type: ignore[override]
    def state(self) -> Any:
        return {"unknown": "to us"}

    @state.setter
    def state(self, state: Any) -> None:
        pass


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "three betas": lambda ps: Aux(ps, betas=(0.98, 0.92, 0.99), eps=1e-8, lr=1e-3),
    "one beta": lambda ps: Aux(ps, beta1=0.9, eps=(1e-30, 1e-3)),
    "rate as a tensor": lambda ps: torch.optim.SGD(ps, lr=torch.tensor(0.1)),
    "rate as nothing": lambda ps: Aux(ps, lr=None, betas=(0.9, torch.tensor(0.99)), eps="tiny"),
    "SAM": lambda ps: SAM(ps, lr=0.05),
    "LBFGS": lambda ps: torch.optim.LBFGS(ps, max_iter=3),
    "rude": lambda ps: Rude(ps, lr=0.05),
}


# ------------------------------------------------------------------------------------------------ in mid-run


def cast(module: OddModule) -> None:
    module.net.double()


def replace(module: OddModule) -> None:
    group = module.optimizers().param_groups[0]["params"]  # type: ignore[union-attr]
    old, new = module.net, nn.Linear(SIZE, SIZE)
    for before, after in zip(old.parameters(), new.parameters(), strict=True):
        group[next(i for i, p in enumerate(group) if p is before)] = after
    module.net = new


def grow(module: OddModule) -> None:
    module.net = nn.Sequential(module.net, nn.Linear(SIZE, SIZE))
    module.optimizers().add_param_group({"params": list(module.net[1].parameters())})  # type: ignore[union-attr]


def freeze(module: OddModule) -> None:
    module.net.requires_grad_(False)


def swap_data(module: OddModule) -> None:
    module.head.weight.data = module.head.weight.data.clone()


def drop(module: OddModule) -> None:
    module.net = nn.Identity()


CHANGES: dict[str, Callable[[OddModule], None]] = {
    "cast": cast, "replace": replace, "grow": grow, "freeze": freeze, "swap data": swap_data, "drop": drop,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ loggers


class Raising(DummyLogger):
    """Raises whatever GradWatch alone asks of it."""

    @property
    def _prefix(self) -> str:
        raise RuntimeError("no prefix")

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        if any(name.startswith("gradwatch") for name in metrics):
            raise RuntimeError("takes no metrics")


def mocked() -> Any:
    logger = MagicMock(spec=Logger)
    logger.log_dir, logger.save_dir = MagicMock(), None
    return logger


LOGGERS: dict[str, Callable[[], Any]] = {"raises": Raising, "mocked": mocked, "two": lambda: [DummyLogger(), Raising()]}


# ------------------------------------------------------------------------------------------------ the property


class OddModule(pl.LightningModule):
    def __init__(self, net: nn.Module, optimizer: Any, change: Callable[[OddModule], None] | None) -> None:
        super().__init__()
        self.net, self.head = net, nn.Linear(SIZE, CLASSES)
        self.make, self.change = optimizer, change

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.change is not None and batch_idx == STEPS // 2:
            self.change(self)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = unpack(batch)
        first = next(self.net.modules() if not isinstance(self.net, Unlisted) else iter([self.net]))
        dtype = next((p.dtype for p in first._parameters.values() if p is not None), torch.float32)
        known = dtype if dtype.is_floating_point else torch.float32
        return functional.cross_entropy(self.head(self.net(x.to(known)).float()), y)

    def configure_optimizers(self) -> Any:
        trained = [p for p in nn.Module.parameters(self) if p.requires_grad and p.is_floating_point()]
        return self.make(trained)


class Batches(IterableDataset[Any]):
    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2 * STEPS, 4, SIZE, generator=generator)
        with warnings.catch_warnings():  # of torch, about kinds of tensors that are new
            warnings.simplefilter("ignore")
            self.batches = [pack(inputs, inputs[:, :CLASSES].argmax(1)) for inputs in x]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def same(batch: Any) -> Any:
    return batch


@dataclasses.dataclass
class Outcome:
    """How a run ended."""

    weights: dict[str, Tensor]
    num_steps: int
    failure: str
    troubles: list[str]


def run(watch: GradWatch | None, odd: dict[str, Any], trainer_options: dict[str, Any]) -> Outcome:
    pl.seed_everything(0, verbose=False)
    net = odd.get("network", lambda: nn.Linear(SIZE, SIZE))()
    if isinstance(net, nn.LazyLinear):
        net(torch.zeros(1, SIZE))
    model = OddModule(net, odd.get("optimizer", lambda ps: torch.optim.Adam(ps)), odd.get("change"))
    data = DataLoader(Batches(odd.get("batch", lambda x, y: (x, y))), batch_size=None, collate_fn=same)
    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        callbacks=[watch] if watch else [],
        logger=odd.get("logger", lambda: False)(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"default_root_dir": tempfile.mkdtemp(), **trainer_options},
    )
    failure = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit(model, data)
        except Exception as error:  # what is odd may fail without us, too
            failure = repr(error)
    said = [str(w.message) for w in caught if w.category is GradWatchWarning]
    troubles = [message for message in said if not message.startswith("GradWatch, ")]
    weights = {name: value.clone() for name, value in nn.Module.state_dict(model).items()}
    return Outcome(weights, trainer.global_step, failure, troubles)


ODDITIES = [
    *[("network", name) for name in NETWORKS],
    *[("batch", name) for name in BATCHES],
    *[("optimizer", name) for name in OPTIMIZERS],
    *[("change", name) for name in CHANGES],
    *[("logger", name) for name in LOGGERS],
]
KNOWN: dict[str, dict[str, Any]] = {
    "network": NETWORKS, "batch": BATCHES, "optimizer": OPTIMIZERS, "change": CHANGES, "logger": LOGGERS,
}  # fmt: skip
WATCHES = st.fixed_dictionaries(
    {
        "dense_steps": st.integers(0, 6),
        "sample_every_n_steps": st.integers(1, 5),
        "histogram_every": st.integers(0, 2),
        "log_every_n_steps": st.sampled_from([None, 1, 3]),
        "on_nonfinite": st.sampled_from(["keep", "skip"]),
    }
)
TRAINERS = st.fixed_dictionaries(
    {
        "accumulate_grad_batches": st.sampled_from([1, 2]),
        "gradient_clip_val": st.sampled_from([None, 0.5]),
        "log_every_n_steps": st.sampled_from([2, 50]),
    }
)


@pytest.mark.parametrize(("place", "name"), ODDITIES, ids=str)
@settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(watch=WATCHES, trainer=TRAINERS)
def test_a_run_with_one_odd_thing_ends_as_without_us(
    place: str, name: str, watch: dict[str, Any], trainer: dict[str, Any]
) -> None:
    odd = {place: KNOWN[place][name]}
    if name in ("sparse", "cast"):  # Adam takes neither
        odd["optimizer"] = lambda ps: torch.optim.SGD(ps, lr=0.1)
    if name == "sparse":
        trainer = {**trainer, "gradient_clip_val": None}
    bare, watched = run(None, odd, trainer), run(GradWatch(**watch), odd, trainer)
    assert watched.failure == bare.failure
    assert watched.num_steps == bare.num_steps
    assert bare.weights.keys() == watched.weights.keys()
    assert all(torch.equal(watched.weights[key], bare.weights[key]) for key in bare.weights)
    assert len(watched.troubles) <= 1, watched.troubles
    assert not any("switched itself off" in trouble for trouble in watched.troubles), watched.troubles
