"""GradWatch for Lightning: each hook of a Trainer is one call of the session."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal

from torch.optim import Optimizer

from lightning_gradwatch import _lightning
from lightning_gradwatch._lightning import Callback, LightningHost, LightningModule, Trainer
from lightning_gradwatch.actions import OnAlert
from lightning_gradwatch.config import AutoClip, configure
from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.alerts.rule import Rule
from lightning_gradwatch.core.quantities.quantity import LayerQuantity
from lightning_gradwatch.core.records import Alert
from lightning_gradwatch.core.settings import Settings
from lightning_gradwatch.outputs.notify import Address
from lightning_gradwatch.run_state import RunState
from lightning_gradwatch.session import Session
from lightning_gradwatch.showing import Showing

_KEY, GUEST_KEY = "GradWatch", "GradWatch from the environment"
_BUSY = (
    "GradWatch stays out of this Trainer: the same object is watching another one, whose `fit` is still under way. To "
    "cure it: give each Trainer its own, GradWatch()."
)


class GradWatch(Showing, Callback):  # type: ignore[misc]  # mypy compares the two namespaces' Callbacks
    """Watches the gradients of a training run: logs them per layer, and alerts with cause and remedy when they ail.

    Gradients are observed after the backward pass that completes each optimizer step: complete (accumulation done),
    unscaled (the AMP loss scale divided out) and not yet clipped. Norms are taken at every step on the device; what
    costs more is taken on sampled steps only. Nothing is changed: weights after training are bit-identical with and
    without GradWatch.

    Args:
        sample_at: ``"step"`` observes the complete gradient before each optimizer step. ``"backward"`` observes after
            every backward pass instead: under gradient accumulation the running sum of the micro-batches so far, under
            DDP before the ranks are averaged if the backward pass did not synchronise. It needs a single optimizer.
        dense_steps: Number of steps at the start of training of which each takes a sample (gradients at layer
            outputs; the first and every fifth one also weight norms, zero fractions, updates; inputs less often).
        sample_every_n_steps: Average distance of samples after that, with jitter that is equal on all ranks.
        log_every_n_steps: Steps between two publications to the loggers; None for the Trainer's own.
        histogram_every: Steps that lie between two histograms of log10|g| per layer at least; they come with every
            fifth sample, and farther apart as the run grows. 0 for never.
        include: Globs over layer names (module paths) to report per layer; None for all. The total norm is always over
            all gradients.
        exclude: Globs over layer names not to report.
        group_by: Number of leading path components by which layers share a row in the standard dashboards; None for
            one row per layer, or per module if there are more than 50 layers.
        layer_cards: How many of these rows have cards of their own in TensorBoard's standard dashboards, and in W&B,
            MLflow, Comet and Trackio: a norm and, where the logger can show it, a histogram of log10|g| each, at even
            distances from the input to the loss; 0 for none, None for all. Tab and page show every layer in any case.
        auto_clip: Clips the gradients after they have been measured, at every optimizer step: True for the default
            policy, which leaves a healthy training alone, ``"band"`` (the same), ``"percentile"``, ``"zscore"``,
            ``"agc"``, ``"adagc"``, ``"norm"`` or ``"value"``, a number for a fixed maximum of the total norm, a policy
            such as ``Percentile(5)``, or several of them, each for the layers that it includes (a gradient is clipped
            by the first that wants it). None for no clipping.
        compose_clipping: Whether ``auto_clip`` may work before the Trainer's own ``gradient_clip_val``.
        on_nonfinite: What to do with a step whose gradient is NaN or infinite, where no loss scaler skips it anyway:
            ``"keep"``; ``"trace"`` (the step is taken, but before that the alert says where the NaN was born; the host
            reads one number per step for it); ``"skip"`` (weights and optimizer state stay as they are; the same price
            but for fused optimizers, and the alert says where) or ``"raise"``, a ``GradientAlertError`` that says
            where.
        on_spike: What to do with a step whose gradient norm or loss stands out of the last 128, more than six robust
            standard deviations above their median: ``"keep"``, or ``"skip"`` (as for ``on_nonfinite``, at the same
            price). With several ranks that each have batches of their own, by the norm alone.
        vanishing_threshold: Score in (0, 1] at which ``vanishing`` alerts; 0.5 means that the gradient shrinks by two
            orders of magnitude, a factor of 100, between the loss end and the input end.
        notify: Where messages about alerts go, as addresses of Apprise (``pip install 'lightning-gradwatch[notify]'``),
            besides those in the environment variable ``GRADWATCH_NOTIFY``: better there, where no secret is in code.
        tensorboard_url: Address of a TensorBoard that shows the run, for a link in messages.
        on_alert: What to do when an alert opens, notices apart: ``"warn"``, ``"checkpoint"`` (saves one before the
            optimizer step at which the alert is noticed, or after it under accumulation and in manual optimization; NaN
            may have spoilt the weights by then, unless ``on_nonfinite`` is ``"skip"``), ``"stop"`` (the end of
            training after the batch), ``"raise"`` (a ``GradientAlertError``), a function that takes the
            ``Alert``, or a dict of these by ``alert.kind``. What rank zero saw is done on all ranks, on several at
            the next step at which a sample is scheduled.
        flight_steps: Number of steps whose norms, losses and whereabouts are written to a file beside the logs at an
            alert, an exception, a signal and the end of training; 0 for no such file.
        progress_bar: Whether the progress bar shows the score of ``vanishing`` once it is half of the threshold.
        max_overhead: What watching may cost, as a fraction of the time of the steps: 0.01 is 1 %. Where the host's own
            time is above it, samples are taken less often, alike on all ranks; the dense start, and the norms of
            every step, stay. None for no budget. On a GPU it is the host's time, not the device's.
        prescribe: Whether remedies are tried on a copy of the model when the first alert of the run is noticed, with
            the batch at hand, as ``prescribe`` does; training waits for at most 60 seconds, or
            the number given. Rank zero does it alone, and not where the model is sharded.
        rules: Rules of your own, which raise alerts of kinds of their own: objects with ``kind``, ``title`` and
            ``update(observation, history)``, as ``docs/extending.md`` shows.
        quantities: Quantities of your own, one number per layer, for tab, page and terminal: objects with ``name``,
            ``label``, ``hint``, ``scale``, ``unit``, ``missing`` and ``measure(weights, gradients)``.
        record: Where what the tab and ``gradwatch report`` show is kept. None: in the event file of a
            ``TensorBoardLogger``; without one, in an event file of our own in the logger's directory, or in
            ``default_root_dir/gradwatch`` where it has none; with ``logger=False`` nowhere. A local directory: in an
            event file there, with any logger or none. False: nowhere; loggers get the run-level numbers alone.

    Raises:
        ValueError: If an argument is out of its range, a rule or quantity is none or has a name that is taken, or
            ``sample_at="backward"`` is combined with ``auto_clip``, ``on_nonfinite`` or ``on_spike``. When training
            starts, if a glob of ``include`` matches no layer or no layer is left to watch; if the Trainer's strategy is
            none of a single device, DDP, FSDP, ModelParallelStrategy and DeepSpeed (XLA, for example), FSDP has
            ``use_orig_params=False``, or DeepSpeed has no ZeRO stage or offloads to NVMe; if ``auto_clip`` meets
            ``gradient_clip_val`` without ``compose_clipping``; if ``auto_clip`` or ``on_spike`` meets LBFGS; if a
            policy is for an optimizer that is not there, or cannot clip sharded parameters; or if there are several
            optimizers with ``sample_at="backward"``.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GradWatch()], logger=False, enable_checkpointing=False)
    """

    state_key = _KEY
    """Key of the state in a checkpoint; a Trainer takes no two callbacks of the same key, and asks at every hook."""

    def __init__(
        self,
        sample_at: Literal["step", "backward"] = "step",
        dense_steps: int = 20,
        sample_every_n_steps: int = 10,
        log_every_n_steps: int | None = None,
        histogram_every: int = 10,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        group_by: int | None = None,
        layer_cards: int | None = 8,
        auto_clip: AutoClip = None,
        compose_clipping: bool = False,
        on_nonfinite: Literal["keep", "trace", "skip", "raise"] = "keep",
        on_spike: Literal["keep", "skip"] = "keep",
        vanishing_threshold: float = 0.5,
        notify: Sequence[Address] | Address | None = None,
        tensorboard_url: str | None = None,
        on_alert: OnAlert = "warn",
        flight_steps: int = 200,
        progress_bar: bool = False,
        max_overhead: float | None = None,
        prescribe: bool | float = False,
        rules: Sequence[Rule] = (),
        quantities: Sequence[LayerQuantity] = (),
        record: str | PathLike[str] | bool | None = None,
    ) -> None:
        self.config = configure(
            sample_at=sample_at,
            dense_steps=dense_steps,
            sample_every_n_steps=sample_every_n_steps,
            log_every_n_steps=log_every_n_steps,
            histogram_every=histogram_every,
            include=include,
            exclude=exclude,
            group_by=group_by,
            layer_cards=layer_cards,
            auto_clip=auto_clip,
            compose_clipping=compose_clipping,
            on_nonfinite=on_nonfinite,
            on_spike=on_spike,
            vanishing_threshold=vanishing_threshold,
            notify=notify,
            tensorboard_url=tensorboard_url,
            on_alert=on_alert,
            flight_steps=flight_steps,
            progress_bar=progress_bar,
            max_overhead=max_overhead,
            prescribe=prescribe,
            rules=rules,
            quantities=quantities,
            record=record,
        )
        self._state = RunState()
        self._host: LightningHost | None = None
        self._session: Session | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle takes arguments and alerts along, not the run (nor the Trainer's own additions)."""
        added_by_trainer = ("log", "log_dict")
        kept = {name: value for name, value in self.__dict__.items() if name not in added_by_trainer}
        return {**kept, "_host": None, "_session": None}

    @property
    def settings(self) -> Settings:
        """What each optimizer's watcher looks at, how often, and what it clips by."""
        return self.config.settings

    @property
    def alerts(self) -> list[Alert]:
        """The alerts of this run so far, oldest first (the last 1,000); an open one has no ``until_step``."""
        return list(self._state.alert_log.alerts)

    @property
    def profile(self) -> dict[str, float]:
        """Gradient norm at each layer's output in the latest sample, the input end first.

        Of layers that own a matrix; where outputs could not be observed, the norms of the weights' gradients. With
        several optimizers one network follows the other. Empty before the first sample.
        """
        return {} if self._session is None else self._session.watches.profile

    def is_busy(self, trainer: Trainer) -> bool:
        """Whether it is watching another Trainer, which may have called this one in a hook or a thread."""
        return self._host is not None and self._host.is_busy_beside(trainer)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be watched correctly, before anything has been spent on it."""
        if stage != "fit":
            return
        if self.is_busy(trainer):
            _lightning.set_callbacks(trainer, [c for c in _lightning.callbacks(trainer) if c is not self])
            _lightning.warn(_BUSY)
            return
        # a second fit of the same model goes on with the first
        host = LightningHost(trainer, pl_module, self)
        if self._session is None or self._session.model is not pl_module or host.num_finished_steps() == 0:
            self._state = RunState()
        self._host, self._session = host, Session(self.config, host, pl_module, self._state)
        twins = [c for c in _lightning.callbacks(trainer) if isinstance(c, GradWatch) and c.state_key == self.state_key]
        if len(twins) > 1:
            cure = "leave the others out, in the Trainer or in `configure_callbacks`"
            raise refuse("callbacks", "a list with one GradWatch", f"{len(twins)} of them", cure)
        _lightning.refuse_unsupported(trainer, self.config)
        _lightning.refuse_clipping_twice(host, self.config)
        if not _lightning.builds_layers_later(pl_module):
            self.config.check_layers(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a selection of nothing also where the layers are made in ``configure_model`` or ``setup``."""
        self.config.check_layers(pl_module)
        if self._session is not None:
            self._session.note_random_state()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a watch for every optimizer."""
        session = self._session_of(trainer)
        if session is not None and self._host is not None:  # not put among the callbacks too late to hear of the end
            self._host.begin()
            session.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember from which random state the order of the batches follows."""
        if self._session is not None:
            self._session.before_epoch()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Arm the probe if a step of this batch will be sampled."""
        if self._session is not None:
            self._session.before_forward(batch, batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """Remember the loss; it is read together with the gradients."""
        if self._session is not None:
            self._session.before_backward(loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Observe, if every backward pass is to be observed."""
        if self._session is not None:
            self._session.after_backward()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Observe the complete, unscaled, unclipped gradient, and clip it; clip also after the watch has failed."""
        if self._session is not None and self._host is not None and self._host.steps_now():
            self._session.before_step(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the probe away once the optimizer has stepped, look at the cost, and do what alerts ask for."""
        if self._session is not None:
            self._session.after_batch()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look away: under accumulation a model may be validated in the middle of a step."""
        if self._session is not None:
            self._session.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look again."""
        if self._session is not None:
            self._session.resume()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish what is left, and do what its alerts ask for."""
        session = self._session_of(trainer)
        if session is not None:
            session.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Publish what is left and remove every hook: ``teardown`` is not called when ``fit`` raises."""
        session = self._session_of(trainer)
        if session is not None and not session.is_closed:
            session.break_off(type(exception).__name__)
            session.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove every hook."""
        session = self._session_of(trainer)
        if session is not None:
            session.close()

    def state_dict(self) -> dict[str, Any]:
        """Counters, windows, detectors and alerts: tensors and primitives, so it loads with ``weights_only=True``."""
        if self._session is None:
            return {**self._state.state_dict(), "watchers": dict(self._state.watchers)}
        return self._session.state_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on, too, where a GradWatch from the environment has watched so far, or the other way round."""
        states = checkpoint.get("callbacks") or {}
        others = [checkpoint.get(GUEST_KEY), *(states.get(key) for key in (_KEY, GUEST_KEY))]
        if self.state_key not in states:  # otherwise Lightning hands it over
            for state in [state for state in others if state][:1]:
                self.load_state_dict(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written.

        What it lacks, or has in a form that cannot be read, starts afresh, part by part; the latter is said in one line
        when training starts.
        """
        try:
            self._state.load_state_dict(state_dict)
        except Exception as failure:
            if is_the_users(failure):
                raise
            _lightning.warn(f"GradWatch cannot go on from this checkpoint and starts afresh ({failure!r}).")

    def _session_of(self, trainer: Trainer) -> Session | None:
        """The session, if it is this Trainer's, and this process's."""
        return self._session if self._host is not None and self._host.belongs_to(trainer) else None
