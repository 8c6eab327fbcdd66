"""Layers that run and that no gradient ever reaches."""

from __future__ import annotations

from lightning_gradwatch.core.alerts.hysteresis import Hysteresis, SteadyRule
from lightning_gradwatch.core.alerts.kind import Diagnosis, Kind, named
from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.history.evidence import Evidence
from lightning_gradwatch.core.records import AlertLevel, Finding, Observation
from lightning_gradwatch.core.saved import Saved, State

SAMPLES = 10


class DetachedRule(SteadyRule):
    """A layer that ran in ten samples and never had a gradient.

    A mere notice if trained layers feed it and nobody wants what it puts out: it is then a head that the loss does not
    use. What a path that is cut puts out is kept, for the gradients of the layers behind it. Nothing is judged while
    rounding swallows gradients.
    """

    def __init__(self) -> None:
        super().__init__(Hysteresis("detached", 1.0, release=1.0))
        self._num_runs: dict[str, int] = {}

    def update(self, observation: Observation, history: History) -> Finding | None:
        """Judge a sample."""
        sample = history.sample
        if sample is None or "underflow" in history.open:
            return None
        for layer in observation.layers:
            if layer.name in sample.ran:
                self._num_runs[layer.name] = self._num_runs.get(layer.name, 0) + 1
        never = [name for name in history.reach.unreached if self._num_runs[name] >= SAMPLES]
        level: AlertLevel = "notice" if never and {*never} <= history.reach.spare else "alert"
        return self.hysteresis.judge(sample.step, float(len(never)), tuple(never), level)

    def scores(self, history: History) -> dict[str, float]:
        """Number of detached layers."""
        return {"detached_layers": float(len(self.finding.layers)) if self.finding is not None else 0.0}

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back."""
        return {"num_runs": dict(self._num_runs), "detached": self.hysteresis.state_dict()}

    def load_state_dict(self, state: Saved) -> None:
        """Go on where ``state_dict`` was taken."""
        self._num_runs = state.take("num_runs", dict[str, int], self._num_runs)
        self.hysteresis.load_state_dict(state.part("detached"))


def describe(finding: Finding, _: Evidence) -> str:
    """What is wrong, in a sentence."""
    verbs = "runs but never gets" if len(finding.layers) == 1 else "run but never get"
    return f"{named(finding.layers)} {verbs} a gradient (step {finding.step})."


def diagnose(*_: object) -> Diagnosis:
    """It is its own cause."""
    return Diagnosis(
        "detached",
        "in none of ten samples did a gradient arrive at their output",
        (
            "remove .detach(), torch.no_grad(), .item(), argmax or numpy between these layers and the loss",
            "let the loss use their output, if nothing does",
            "requires_grad_(False), or exclude=..., if that is on purpose",
        ),
    )


DETACHED = Kind(
    name="detached",
    title="Layers that no gradient reaches",
    label="Detached",
    unit="layers",
    rule=DetachedRule,
    describe=describe,
    diagnose=diagnose,
    saved_at=("SilenceRule",),
)
