"""What is on the device goes home in one copy, made the numbers of the whole on the way, and is digested."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.core.architecture import Surveyor
from lightning_gradwatch.core.assemble import Label
from lightning_gradwatch.core.digest import Digest
from lightning_gradwatch.core.instruments import Instruments
from lightning_gradwatch.core.optional import OptionalFigures
from lightning_gradwatch.core.pending import Pending
from lightning_gradwatch.core.reader import Reader
from lightning_gradwatch.core.reports import NOTHING, Report, join
from lightning_gradwatch.core.transfer import Transfer


class Sender:
    """Sends the numbers of one optimizer to the host.

    Args:
        optimizer: The optimizer.
        surveyor: Knows what the network is made of.
        pending: Knows what the rows on the device are of.
        reader: Knows how ranks add up what it has read.
        digest: Takes what has arrived.
        optional: Knows which figures are left out.

    Attributes:
        late: What was digested at a time when nobody could be told.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        surveyor: Surveyor,
        pending: Pending,
        reader: Reader,
        digest: Digest,
        optional: OptionalFigures,
    ) -> None:
        self.late = NOTHING
        self._optimizer = optimizer
        self._surveyor = surveyor
        self._pending = pending
        self._reader = reader
        self._digest = digest
        self._optional = optional
        self._transfer: Transfer[Label] = Transfer()

    def send(self, instruments: Instruments, due: dict[str, Tensor], publish: bool, is_urgent: bool = False) -> Report:
        """Start the copy to the host, and digest what has arrived by now."""
        if publish:
            self._digest.publisher.num_publications += 1
        window, architecture = instruments.window, self._surveyor.architecture
        label = self._pending.label(instruments, architecture, self._optimizer, publish)
        done = instruments.interventions(in_full=publish or "outputs" in due)
        tensors = {"norms": window.norms, "facts": window.facts, **done, **due}
        reductions = self._reader.reductions
        if instruments.intervenes:  # the norms are those of the whole already
            reductions = {**reductions, "norms": "mean"}
        if instruments.shards.is_spread:
            tensors["resigned"] = window.norms.new_full((1,), float(self._digest.has_resigned))
        whole = instruments.shards.reduce(tensors, reductions, self._optional.absent)
        self.drop_rows(instruments)
        if not whole:  # this rank goes through the step again
            return NOTHING
        arrived = self._transfer.send(label, whole)
        if publish:
            instruments.clippers.forget()
        if is_urgent:
            arrived += self._transfer.receive()
        late, self.late = self.late, NOTHING
        return join(late, self._digest.take(arrived))

    def receive(self) -> Report:
        """Wait for the copy under way, if there is one, and digest it."""
        return self._digest.take(self._transfer.receive())

    def drop_rows(self, instruments: Instruments) -> None:
        """Forget the steps whose numbers are on the device."""
        instruments.window.clear()
        self._pending.drop()
