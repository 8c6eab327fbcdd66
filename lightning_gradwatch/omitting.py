"""What a run goes on without: said once, and kept for whoever reads the log."""

from __future__ import annotations

from lightning_gradwatch.core.optional import Omission, OwnFigure
from lightning_gradwatch.host import Host
from lightning_gradwatch.reading.left_out import LeftOut


class Omissions:
    """Takes what fails, and is left out from then on, of one run.

    Args:
        host: The training loop, which knows the step, and how to warn.
        left_out: Where it is kept; what an earlier fit has left there is tried again.
    """

    def __init__(self, host: Host, left_out: list[LeftOut]) -> None:
        self._host = host
        self._left_out = left_out
        left_out.clear()

    def __call__(self, omission: Omission) -> None:
        """Warn, and keep it; once, however many optimizers go without."""
        kind, name = _named(omission)
        if any((one["kind"], one["name"]) == (kind, name) for one in self._left_out):
            return
        step = self._host.step()
        message = f"GradWatch left out {omission.what} from step {step} on ({omission.why})."
        self._left_out.append({"kind": kind, "name": name, "step": step, "message": message})
        self._host.warn(str(omission))


def _named(omission: Omission) -> tuple[str, str]:
    figure = omission.figure
    return (figure.kind, figure.name) if isinstance(figure, OwnFigure) else ("figure", figure)
