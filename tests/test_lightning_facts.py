"""What GradWatch relies on in Lightning: if one of these breaks, the numbers mean something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy

from tests.tasks import Classifier, digits, quiet_trainer, read_events, scalars, small_net

SCALE = 1024.0


class Diary(pl.Callback):
    """Writes down the order of the hooks and the gradient norm in each."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, float | None]] = []

    def note(self, hook: str, module: pl.LightningModule) -> None:
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item() if gradients else None
        self.entries.append((hook, norm))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.entries.append(("batch_start", None))

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self.entries.append(("before_backward", loss.item()))

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.note("after_backward", pl_module)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.note("before_step", pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.note("batch_end", pl_module)

    def norms(self, hook: str) -> list[float | None]:
        return [norm for name, norm in self.entries if name == hook]


def run(model: Any = None, **options: Any) -> Diary:
    diary = Diary()
    pl.seed_everything(1, verbose=False)
    quiet_trainer(diary, **options).fit(model or Classifier(small_net()), digits())
    return diary


def test_hooks_come_in_the_order_on_which_we_rely() -> None:
    diary = run(max_steps=1)
    order = ["batch_start", "before_backward", "after_backward", "before_step", "batch_end"]
    assert [name for name, _ in diary.entries] == order


def test_before_the_step_the_gradient_is_not_yet_clipped() -> None:
    diary = run(max_steps=1, gradient_clip_val=0.01)
    (before,), (after,) = diary.norms("before_step"), diary.norms("batch_end")
    assert before is not None
    assert before > 0.1
    assert after == pytest.approx(0.01, rel=1e-3)


def test_under_accumulation_the_step_hook_comes_once_with_the_complete_gradient() -> None:
    diary = run(max_steps=1, accumulate_grad_batches=3)
    assert len(diary.norms("after_backward")) == 3
    assert diary.norms("before_step") == diary.norms("after_backward")[-1:]


def test_the_loss_comes_divided_by_the_number_of_accumulated_batches() -> None:
    whole, part = run(max_steps=1), run(max_steps=1, accumulate_grad_batches=4)
    assert part.norms("before_backward")[0] == pytest.approx(whole.norms("before_backward")[0] / 4, rel=1e-5)  # type: ignore[operator]


def fp16(**scaler: Any) -> dict[str, Any]:
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=SCALE, **scaler))]}


def test_a_loss_scaler_is_divided_out_before_the_step_but_not_after_the_backward() -> None:
    diary = run(max_steps=1, **fp16())
    (loss,), (scaled,), (unscaled,) = (diary.norms(h) for h in ("before_backward", "after_backward", "before_step"))
    assert scaled == pytest.approx(SCALE * unscaled, rel=1e-3)  # type: ignore[operator]
    assert loss is not None
    assert loss > SCALE


def test_a_fused_optimizer_leaves_the_scale_in_until_its_step() -> None:
    diary = run(Classifier(small_net(), optimizer=torch.optim.Adam, fused=True), max_steps=1, **fp16())
    assert diary.norms("before_step") == diary.norms("after_backward")


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_step_without_a_loss_still_calls_the_step_hook() -> None:
    class Silent(Classifier):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

    diary = run(Silent(small_net()), limit_train_batches=1, max_steps=-1, max_epochs=1)
    assert diary.norms("before_step") == [None]


def test_the_trainer_takes_the_attributes_log_and_log_dict_for_itself() -> None:
    callback = Diary()
    quiet_trainer(callback, max_steps=1).fit(Classifier(small_net()), digits())
    assert {"log", "log_dict"} <= set(vars(callback))


def test_lightning_logs_the_step_under_the_number_that_we_read_before_it(tmp_path: Path) -> None:
    from lightning_gradwatch._lightning import LightningHost

    class Axis(pl.Callback):
        seen: list[int] = []

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            host = LightningHost(trainer, pl_module, self)
            if (host.step() + 1) % host.log_every_n_steps() == 0:
                self.seen.append(host.step())

    axis = Axis()
    quiet_trainer(axis, directory=tmp_path, log_every_n_steps=4, max_steps=12, accumulate_grad_batches=2).fit(
        Classifier(small_net()), digits()
    )
    assert axis.seen == [3, 7, 11]
    assert list(scalars(read_events(tmp_path), "loss")) == axis.seen


def test_teardown_is_not_called_when_fit_raises() -> None:
    calls: list[str] = []

    class Failing(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            raise RuntimeError("stop here")

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            calls.append("on_exception")

        def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
            calls.append("teardown")

    with pytest.raises(RuntimeError, match="stop here"):
        quiet_trainer(Failing()).fit(Classifier(small_net()), digits())
    assert calls == ["on_exception"]


def test_fsdp2_has_no_loss_scaler() -> None:
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    with pytest.raises(ValueError, match="does not support"):
        pl.Trainer(strategy=strategy, accelerator="cpu", precision="16-mixed", logger=False)
