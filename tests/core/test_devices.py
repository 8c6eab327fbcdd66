"""An accelerator is not waited for, and a host waits for what it reads; torch's meta device stands for the accelerator.

Copies that wait, and reads, are seen as a mode sees them; what they would bring is answered by zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_gradwatch.core import layers, modes, probe, tensors
from lightning_gradwatch.core.clip import NAMES, Clipper, make_policies
from lightning_gradwatch.core.histogram import log_histograms
from lightning_gradwatch.core.measure import NormWindow, ParameterMeter
from lightning_gradwatch.core.optional import Omission
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.shards import Shards
from lightning_gradwatch.core.updates import UpdateMeter
from lightning_gradwatch.core.watcher import Watcher

THERE = "meta"
READS = {f"aten::{name}" for name in ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select")}


class Copies(TorchDispatchMode):
    """Copies between host and device."""

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        """Count anew."""
        self.home: list[bool] = []  # for each whether the host waits
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, target = func._schema.name, kwargs.get("device")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        kinds = {t.device.type for t in tensors}
        if name in READS and THERE in kinds:
            self.waits.append(name)
            return False
        if name == "aten::_to_copy" and target is not None and len(kinds | {torch.device(target).type}) == 2:
            if THERE in kinds:
                self.home.append(not kwargs.get("non_blocking"))
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            if not kwargs.get("non_blocking"):
                self.waits.append(name)
        elif any(t.ndim and t.device.type == "cpu" for t in tensors) and THERE in kinds:
            self.waits.append(name)
        return func(*args, **kwargs)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Copies]:
    monkeypatch.setattr(modes, "num_dispatch_modes", lambda: 0)  # else GradWatch hides from modes
    monkeypatch.setattr(layers, "is_measurable", lambda *_: True)  # a meta tensor has no numbers
    for room in (probe, tensors):
        monkeypatch.setattr(room, "is_plain", lambda part: isinstance(part, Tensor))
    with Copies() as seen:
        yield seen


def parameter(device: str, *shape: int) -> nn.Parameter:
    made = nn.Parameter(torch.ones(shape, device=device))
    made.grad = torch.ones(shape, device=device)
    return made


def on_both() -> list[Tensor]:
    """Parameters of which the first is on the host, as where an embedding is kept there."""
    return [parameter("cpu", 5), parameter(THERE, 4, 3)]


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    parts = [nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4)]
    return nn.Sequential(*parts).to(THERE, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("clip", [None, *NAMES])
def test_no_step_waits_and_a_copy_is_made_on_sampled_and_published_ones_alone(
    copies: Copies, clip: str | None, dtype: torch.dtype
) -> None:
    model = net(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    left_out: list[Omission] = []
    settings = Settings(Schedule(3, 4), histogram_every=1, policies=make_policies(clip))
    watcher = Watcher(model, optimizer, settings, tell=left_out.append)
    x, scale = torch.ones(6, 8, device=THERE, dtype=dtype), torch.ones((), device=THERE)
    for step in range(12):
        is_due = watcher.is_due() or step == 7
        watcher.arm()
        optimizer.zero_grad()
        loss = model(x).float().square().mean()
        (loss * scale).backward()
        copies.waits = copies.waits if step else []
        copies.home = []
        watcher.observe(loss=loss.detach(), loss_scale=scale, gradients_scaled=step % 2 == 0, publish=step == 7)
        assert len(copies.home) == is_due or not step  # the first step makes the plan
        optimizer.step()
    assert copies.waits == []
    assert left_out == []
    assert watcher._probe.failure is None


def test_a_histogram_is_not_waited_for_the_first_time_either(copies: Copies) -> None:
    log_histograms([torch.ones(30, 40, device=THERE), torch.ones(7, device=THERE)], [0, 1], 2, turn=0)
    assert (copies.waits, copies.home) == ([], [])


def test_updates_are_not_waited_for(copies: Copies) -> None:
    parameters = [parameter(THERE, 30, 40), parameter(THERE, 7)]
    optimizer = torch.optim.AdamW(parameters, foreach=False)
    optimizer.step()
    meter = UpdateMeter(parameters, [0, 1], 2, optimizer)
    copies.forget()
    meter.remember(torch.ones((), dtype=torch.bool, device=THERE))
    meter.compare()
    meter.moments(1)
    assert (copies.waits, copies.home) == ([], [])


@pytest.mark.parametrize("clip", NAMES)
def test_a_host_waits_for_the_numbers_of_a_device_that_it_reads(copies: Copies, clip: str) -> None:
    parameters = on_both()
    NormWindow(parameters).push(None, None, False)
    ParameterMeter(parameters, Shards(())).weight_norms()
    (policy,) = make_policies(clip)
    Clipper(policy, parameters, Shards(())).clip_(torch.tensor([1.0, 2.0]))
    assert copies.home
    assert all(copies.home)


def test_what_another_device_knows_does_not_cost_the_watch(copies: Copies) -> None:
    model = nn.ModuleDict({"read": nn.GRU(2, 3).to(THERE), "judge": nn.Linear(3, 1)})
    optimizer = torch.optim.SGD(model["judge"].parameters(), lr=0.1)
    watcher = Watcher(model, optimizer, Settings(Schedule(5, 5)))
    for _ in range(3):
        watcher.arm()
        model["read"](torch.ones(12, 4, 2, device=THERE))[0].sum().backward()
        model["judge"](torch.ones(4, 3)).sum().backward()
        (observation,) = watcher.observe().observations
        assert observation.sample is not None
        assert [name for name, _ in observation.sample.sequences] == ["read"]
    assert all(copies.home)
