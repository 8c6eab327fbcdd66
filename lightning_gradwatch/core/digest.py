"""What has arrived on the host becomes alerts and publications."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_gradwatch.core.alike import ResignedError, SharedDoubts
from lightning_gradwatch.core.assemble import Assembly, Label, Numbers, change, clipped_counts
from lightning_gradwatch.core.judge import Judge
from lightning_gradwatch.core.optional import OptionalFigures
from lightning_gradwatch.core.own import OwnMeter
from lightning_gradwatch.core.probe import Probe
from lightning_gradwatch.core.publishing import Publisher
from lightning_gradwatch.core.records import Alert, Observation, Publication
from lightning_gradwatch.core.reports import NOTHING, Report, join
from lightning_gradwatch.core.sampling import Sampling
from lightning_gradwatch.core.saved import Saved, State
from lightning_gradwatch.core.snapshot import Snapshot


class Digest:
    """The host's side of a watch: assembles, judges and publishes.

    Args:
        optimizer: Name of the optimizer; ``""`` if there is only one.
        judge: Judges the observations.
        probe: Is told which gradients were strong enough to be trusted.
        sampling: Is asked to look closer where that would settle something.
        own: Quantities of the user's own.
        optional: Leaves out what fails.
        doubts: Says when to look closer where each rank has batches of its own; None if its gradients are its own, too.

    Attributes:
        judge: The same.
        assembly: Makes the observations.
        publisher: Gathers what is published.
        has_resigned: Whether the watch has failed on this rank, and only tells the others so.
    """

    def __init__(
        self,
        optimizer: str,
        judge: Judge,
        probe: Probe,
        sampling: Sampling,
        own: OwnMeter,
        optional: OptionalFigures,
        doubts: SharedDoubts | None,
    ) -> None:
        self._probe = probe
        self._sampling = sampling
        self._optional = optional
        self.assembly = Assembly(optimizer, own, optional)
        self.judge = judge
        self.publisher = Publisher(optimizer)
        self._declared = own.declared
        self._doubts = doubts
        self.has_resigned = False

    def take(self, arrived: Iterable[tuple[Label, Numbers]]) -> Report:
        """Digest copies, the oldest first.

        Raises:
            ResignedError: If the watch has failed on a rank; on all of them at the same step.
        """
        report = NOTHING
        for label, numbers in arrived:
            if "resigned" in numbers and numbers["resigned"].item() > 0:
                raise ResignedError
            if self.has_resigned:
                continue
            observation = self.assembly.observation(label, numbers)
            alerts = self._judged(observation, label, numbers) if observation.steps else ()
            snapshots = self._snapshots(observation, label, numbers)
            publications = self._published(observation, numbers) if label.publish else ()
            changed = change(observation, numbers)
            report = join(report, Report(alerts, publications, True, (observation,), changed, snapshots))
        return report

    def _judged(self, observation: Observation, label: Label, numbers: Numbers) -> tuple[Alert, ...]:
        """Remember an observation, and judge it."""
        self.publisher.add(observation, label.skips)
        self.assembly.remember(observation)
        if observation.sample is not None:
            seen = dict(zip(label.instruments.layer_names, numbers["outputs"].tolist(), strict=True))
            self._optional.take("outputs", None, self._probe.trust, seen)
            thorough = observation.sample.thorough
            if thorough is not None and thorough.attribution is not None:
                self._probe.account.tracer.is_strong = thorough.attribution.is_strong
        alerts = self.judge.judge(observation, label.is_scaled, label.skips)
        # a few more samples at once would settle it; all ranks decide alike, so that none samples alone
        agrees, doubts = label.instruments.shards.agrees, self._doubts
        if self.judge.is_suspicious if agrees else doubts is not None and doubts.are_new(observation):
            self._sampling.look_closer()
        return alerts

    def _published(self, observation: Observation, numbers: Numbers) -> tuple[Publication, ...]:
        return self.publisher.publish(observation, {**self.judge.scores, **_spikes(numbers)})

    def _snapshots(self, observation: Observation, label: Label, numbers: Numbers) -> tuple[Snapshot, ...]:
        """What the record keeps of a sample; nothing where none was taken."""
        sample = observation.sample
        if sample is None:
            return ()
        evidence, is_skipped = self.judge.history.evidence, sample.is_skipped
        counts = self._optional.take("clipped", None, clipped_counts, label, numbers)
        has_state = "weights" in numbers
        return (
            Snapshot(
                step=observation.step,
                optimizer=observation.optimizer,
                layers=observation.layers,
                output_grad_norm=None if is_skipped else sample.output_grad_norm,
                weight_norm=sample.weight_norm if has_state else None,
                zero_fraction=sample.zero_fraction if has_state and not is_skipped else None,
                clipped_fraction=None if counts is None else self.publisher.clipped_share(counts),
                histogram=observation.histogram,
                update_ratios={} if sample.thorough is None else dict(evidence.update_ratio),
                horizons={name: steps for name, (steps, _, _) in evidence.horizons.items()},
                sequences=sample.sequences,
                extra=sample.extra if has_state and not is_skipped else {},
                declared=self._declared,
            ),
        )

    def keep(self, names: Sequence[str], before: Sequence[str]) -> None:
        """Keep what was measured in another order, or of other layers; what is known of those that are no more, forget.

        It must not be taken for other layers'.
        """
        self.publisher.rearrange(names, before)
        self.assembly.latest = None
        self.judge.keep(set(names) & set(before))

    def state_dict(self) -> State:
        """Tensors and primitives that ``load_state_dict`` takes back."""
        return {**self.publisher.state_dict(), **self.assembly.state_dict(), **self.judge.state_dict()}

    def load_state_dict(self, saved: Saved, layers: Sequence[str] | None) -> None:
        """Go on where ``state_dict`` was taken, given the names of the layers if they are known."""
        self.publisher.load_state_dict(saved, layers)
        self.assembly.load_state_dict(saved, layers)
        self.judge.load_state_dict(saved)


def _spikes(numbers: Numbers) -> dict[str, float]:
    """How many steps have been left out because they stood out; nothing where all are kept."""
    return {"spikes_skipped": numbers["spikes"].item()} if "spikes" in numbers else {}
