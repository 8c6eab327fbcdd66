from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.core.clip import make_policies
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.core.schedule import Schedule
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.core.watcher import Watcher
from tests.tasks import Classifier, deep_net, digits, fit


def train_by_hand(net: nn.Module, steps: int) -> tuple[Watcher, list[Alert]]:
    """A hand-written loop without Lightning."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watcher = Watcher(net, optimizer)
    alerts: list[Alert] = []
    for _, (pixels, digit) in zip(range(steps), digits(), strict=False):
        watcher.arm()
        loss = nn.functional.cross_entropy(net(pixels), digit)
        optimizer.zero_grad()
        loss.backward()
        alerts += watcher.observe(loss=loss).alerts
        optimizer.step()
    return watcher, alerts


def test_a_hand_written_loop_finds_what_the_callback_finds() -> None:
    watcher, by_hand = train_by_hand(deep_net(), 15)
    watch = GradWatch()
    with pytest.warns(GradWatchWarning, match="Gradients vanish"):
        fit(watch, Classifier(deep_net()), max_steps=15)
    assert [a.kind for a in by_hand] == ["vanishing"]
    (alert,) = watch.alerts
    assert (alert.step, alert.value) == (by_hand[0].step, by_hand[0].value)
    assert list(watch.profile.values()) == list(watcher.profile.values())
    assert list(watch.profile) == [f"net.{name}" for name in watcher.profile]


def test_no_hook_outlives_its_step() -> None:
    net = deep_net(nn.ReLU, depth=3)
    train_by_hand(net, 3)
    assert not any(module._forward_hooks for module in net.modules())


def test_parameters_added_later_are_followed() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    optimizer = torch.optim.SGD(net["a"].parameters(), lr=0.1)
    watcher = Watcher(net, optimizer, Settings(Schedule(0, 1)))

    def step() -> int:
        watcher.arm()
        net["b"](net["a"](torch.ones(1, 2))).sum().backward()
        (publication,) = watcher.observe(publish=True).publications
        return len(publication.layers)

    assert step() == 1
    optimizer.add_param_group({"params": list(net["b"].parameters())})
    assert step() == 2


def test_many_convolutions_whose_channels_come_last_are_watched_and_clipped() -> None:
    torch.manual_seed(0)
    convolutions = [part for _ in range(5) for part in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    net: nn.Module = nn.Sequential(*convolutions).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    settings = Settings(Schedule(20, 1), histogram_every=1, policies=make_policies(1e-4))
    watcher = Watcher(net, optimizer, settings)
    images = torch.randn(4, 8, 6, 6).to(memory_format=torch.channels_last)
    snapshots = []
    for _ in range(12):
        watcher.arm()
        optimizer.zero_grad()
        net(images).square().mean().backward()
        gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        assert not gradients[0].is_contiguous()
        report = watcher.observe(publish=True)
        (publication,), (snapshot,) = report.publications, report.snapshots
        snapshots.append(snapshot)
        norms = [torch.cat([g.flatten() for g in gradients[i : i + 2]]).norm().item() for i in range(0, 10, 2)]
        assert publication.window.last[1:].tolist() == pytest.approx(norms, rel=1e-5)
        optimizer.step()
    counts = [snapshot.histogram for snapshot in snapshots if snapshot.histogram is not None]
    assert [histogram.sum(1).tolist() for histogram in counts] == [pytest.approx([8 * 8 * 9 + 8] * 5)] * 3
    assert snapshots[9].update_ratios


def test_a_full_window_goes_home_without_being_asked() -> None:
    net = nn.Linear(2, 1)
    watcher = Watcher(net, torch.optim.SGD(net.parameters(), lr=0.0), Settings(Schedule(0, 10**9)))
    for i in range(3000):
        net.zero_grad()
        (net(torch.ones(1, 2)).sum() * (1000.0 if i == 7 else 1.0)).backward()
        watcher.observe()
    (publication,) = watcher.flush().publications
    assert publication.window.num_steps == 3000
    assert publication.window.max[0] > 900 * publication.window.median[0]
