from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gradwatch import GradWatch
from lightning_gradwatch.core.clip import make_policies
from tests.trials.models import (
    KEYS,
    assert_same,
    convolutions,
    cross_entropy,
    decades,
    digits,
    images,
    learn,
    mlp,
    pasted,
    refused,
    sequences,
    treated,
)


def scaled(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Features of very different ranges, one of them constant."""
    x = batch[0].clone()
    x[:, 0], x[:, 1] = 900 + 100 * x[:, 0], 7.0
    return x, batch[1]


def squares(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return model(batch[0]).square().mean()


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 16), nn.Linear(16, 4)

    def forward(self, codes: Tensor) -> Tensor:
        scores: Tensor = self.head(self.embedding(codes).mean(1))
        return scores


# --- the optimizer

RATES = {"tenth": 0.1, "hundredth": 0.01, "thousandth": 1e-3, "x10": 10.0, "x1000": 1e3, "x100000": 1e5}


@pytest.mark.parametrize(("variant", "factor"), RATES.items())
def test_a_rate_is_multiplied_as_the_code_shown_does(variant: str, factor: float) -> None:
    net = mlp(3, nn.ReLU)
    ill = treated(f"lr.{variant}", net, digits())
    assert ill.lr_scale == pytest.approx(factor)
    assert_same(ill.model.state_dict(), net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    pasted(f"lr.{variant}", net, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * factor)


def test_a_warm_up_rises_linearly_over_its_steps() -> None:
    ill = treated("lr.warmup", mlp(3, nn.ReLU), digits())
    optimizer = torch.optim.SGD(ill.model.parameters(), lr=0.5)
    names: dict[str, Any] = {"torch": torch, "optimizer": optimizer}
    exec(KEYS["lr.warmup"].code, names)
    rates = []
    for _ in range(ill.warmup_steps + 2):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        names["scheduler"].step()
    assert rates[0] == pytest.approx(0.5 / ill.warmup_steps)
    assert rates[ill.warmup_steps - 2] < rates[ill.warmup_steps - 1] == rates[-1] == 0.5


@pytest.mark.parametrize(
    ("key", "attribute", "setting", "value"),
    [("weight_decay.zero", "weight_decay", "weight_decay", 0.0), ("adam_eps.small", "adam_eps", "eps", 1e-15)],
)
def test_a_setting_of_the_optimizer_is_what_the_code_shown_sets(
    key: str, attribute: str, setting: str, value: float
) -> None:
    net = mlp(3, nn.ReLU)
    assert getattr(treated(key, net, digits()), attribute) == value
    optimizer = torch.optim.AdamW(net.parameters(), eps=1.0, weight_decay=0.3)
    pasted(key, net, optimizer=optimizer)
    assert optimizer.param_groups[0][setting] == value


@pytest.mark.parametrize("key", ["clip.norm", "clip.percentile", "clip.agc"])
def test_a_clip_is_the_policy_that_the_code_shown_asks_for(key: str) -> None:
    net, batch = mlp(3, nn.ReLU), (1e3 * digits()[0], digits()[1])
    policy: Any
    (policy,) = make_policies(treated(key, net, batch).clip)
    learn(net, batch)
    names: dict[str, Any] = {"torch": torch, "model": net, "GradWatch": GradWatch}
    exec(KEYS[key].code, names)
    if key == "clip.norm":
        assert policy.max_norm == 1.0
        assert float(torch.nn.utils.get_total_norm([p.grad for p in net.parameters()])) == pytest.approx(1.0)
    else:
        assert names["callback"].settings.policies == (policy,)


# --- precision


def bent(dtype: torch.dtype) -> tuple[Any, tuple[Tensor, Tensor]]:
    return mlp(4, nn.ReLU).to(dtype), (digits()[0].to(dtype), digits()[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("variant", "autocast", "scales"),
    [("bf16", torch.bfloat16, False), ("fp16", torch.float16, True), ("full", torch.float32, False)],
)
def test_half_weights_become_whole(dtype: torch.dtype, variant: str, autocast: torch.dtype, scales: bool) -> None:
    net, batch = bent(dtype)
    ill = treated(f"precision.{variant}", net, batch, example=(batch[0],))
    assert (ill.autocast, ill.loss_scale) == (autocast, scales)
    assert {p.dtype for p in ill.model.parameters()} == {torch.float32}
    assert ill.batch[0].dtype == ill.example[0].dtype == torch.float32
    assert ill.batch[1].dtype == torch.long
    with torch.autocast("cpu", autocast, enabled=autocast is not torch.float32):
        learn(ill.model, ill.batch)
    assert ill.model[0].weight.grad.any()
    shown = pasted(f"precision.{variant}", net, batch=batch)
    assert_same(shown.state_dict(), ill.model.state_dict())


def test_gradients_that_underflow_in_half_precision_no_longer_do() -> None:
    def faint(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 1e-7 * F.cross_entropy(model(batch[0]).float(), batch[1])

    net, batch = bent(torch.float16)
    learn(net, batch, faint)
    assert not net[0].weight.grad.any()
    ill = treated("precision.full", net, batch, faint)
    learn(ill.model, ill.batch, faint)
    assert ill.model[0].weight.grad.any()


def test_a_run_in_full_precision_is_refused_and_a_mixed_one_is_not() -> None:
    for variant in ("bf16", "fp16", "full"):
        assert "full precision already" in refused(f"precision.{variant}", mlp(3, nn.ReLU), digits())
    mixed = treated("precision.full", mlp(3, nn.ReLU), digits(), autocast=torch.float16)
    assert mixed.autocast is torch.float32
    assert "already" in refused("precision.bf16", mlp(3, nn.ReLU), digits(), autocast=torch.bfloat16)


# --- inputs


def test_features_are_standardised_at_the_first_layer_as_the_code_shown_does() -> None:
    net, batch = mlp(6, nn.Tanh), scaled(digits())
    model = treated("input.standardise", net, batch).model
    names = {"x": batch[0]}
    exec(KEYS["input.standardise"].code, names)
    torch.testing.assert_close(model(batch[0]), net(names["x"]))
    assert float(names["x"].std(0).max()) == pytest.approx(1.0)
    assert not names["x"][:, 1].any()
    learn(net, batch)
    learn(model, batch)
    assert (net[1](net[0](batch[0])).abs() > 0.99).float().mean() > 0.7  # at the rails
    assert (model[1](model[0](batch[0])).abs() > 0.99).float().mean() < 0.2
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in net.named_parameters()]


def test_images_are_standardised_by_channel_and_sequences_by_feature() -> None:
    for net, batch, dims in (
        (convolutions(3), images(), (0, 2, 3)),
        (nn.LSTM(4, 4, batch_first=True), sequences(), (0, 1)),
    ):
        x = 50 + 9 * batch[0]
        loss = lambda m, b: (m(b)[0] if isinstance(m, nn.LSTM) else m(b)).square().mean()  # noqa: E731
        model = treated("input.standardise", net, x, loss).model
        whole = (x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True)
        torch.testing.assert_close(loss(model, x), loss(net, whole))


def test_codes_and_batches_of_one_or_with_nan_are_refused() -> None:
    codes = torch.randint(9, (8, 5)), digits()[1][:8]
    assert "plain floating tensor" in refused("input.standardise", Embedded(), codes)
    attending = nn.TransformerEncoderLayer(4, 1, 8, batch_first=True)  # its first linear layer does not read the data
    assert "plain floating tensor" in refused("input.standardise", attending, sequences(), squares)
    assert "too small or not finite" in refused("input.standardise", mlp(3, nn.ReLU), digits(count=1))
    spoiled = digits()
    spoiled[0][0, 0] = torch.nan
    assert "too small or not finite" in refused("input.standardise", mlp(3, nn.ReLU), spoiled)


# --- the output


@pytest.mark.parametrize(
    ("last", "loss"),
    [
        (nn.Softmax(-1), cross_entropy),
        (nn.Sigmoid(), lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]), F.one_hot(b[1], 4).float())),
    ],
)
def test_a_squashed_output_goes_where_the_loss_squashes_itself(last: nn.Module, loss: Any) -> None:
    net, batch = mlp(3, nn.ReLU).append(last), digits()
    model = treated("output.logits", net, batch, loss).model
    assert torch.equal(model(batch[0]), net[:-1](batch[0]))
    shown = pasted("output.logits", net)
    assert torch.equal(shown(batch[0]), model(batch[0]))


@pytest.mark.parametrize(
    "loss",
    [
        lambda m, b: F.mse_loss(m(b[0]), F.one_hot(b[1], 4).float()),
        lambda m, b: F.binary_cross_entropy(m(b[0]), F.one_hot(b[1], 4).float()),
        lambda m, b: F.cross_entropy(m(b[0]).log(), b[1]),
    ],
)
def test_a_squashed_output_that_the_loss_needs_stays(loss: Any) -> None:
    net = mlp(3, nn.ReLU).append(nn.Softmax(-1))
    assert "no Softmax or Sigmoid" in refused("output.logits", net, digits(), loss)


def test_unscaled_inputs_starve_nothing_any_more() -> None:
    net = mlp(8, nn.Sigmoid)
    batch = scaled(digits())
    one, other = decades(net, batch), decades(treated("input.standardise", net, batch).model, batch)
    assert other < one
    assert copy.deepcopy(net)(batch[0]).isfinite().all()
