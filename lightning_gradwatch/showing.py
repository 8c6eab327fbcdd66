"""What a watch shows of its run, whoever runs the loop: the report, the numbers, pictures. All of it from memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lightning_gradwatch.run_state import RunState

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from lightning_gradwatch.notebook.history import History
    from lightning_gradwatch.notebook.report import Report


class Showing:
    """Shows what a run has recorded in memory, also without a logger: during training and after it, on rank zero.

    What is recorded is held within 4 MB; in a long run, later bins of steps are wider, and samples fewer.
    """

    _state: RunState

    def report(self) -> Report:
        """The report of the run as it stands now.

        The last expression of a notebook's cell, it shows the page inline; ``.save("report.html")`` writes the page to
        a file, and ``print`` tells the verdict, and of each alert what is wrong, why, and what to try.
        """
        from lightning_gradwatch.notebook.report import Report

        return Report(self._state.memory, self._state.alert_log.alerts)

    @property
    def history(self) -> History:
        """The recorded numbers as arrays: layers, steps, and values by quantity; those of the first optimizer.

        ``history.of("name")`` is that of another one, ``history.to_pandas()`` all of it as a table.
        """
        from lightning_gradwatch.notebook.history import read
        from lightning_gradwatch.notebook.opened import open_memory

        memory = self._state.memory
        return read(None if memory.is_empty else open_memory(memory))

    def plot(
        self,
        kind: Literal["heatmap", "profile", "histogram", "clipping"] = "heatmap",
        layer: str | None = None,
        ax: Axes | None = None,
        optimizer: str | None = None,
    ) -> tuple[Figure | SubFigure, Axes]:
        """Draw what was recorded with matplotlib.

        Args:
            kind: ``"heatmap"``: gradient norms of all layers over the steps. ``"profile"``: the newest norms from the
                input to the loss. ``"histogram"``: log10|g| of a layer over the steps. ``"clipping"``: total norm,
                threshold, and where it was clipped.
            layer: The layer of a histogram; None for the one next to the input.
            ax: The axes to draw on; None for a new figure.
            optimizer: Whose layers; None for the first optimizer.

        Returns:
            The figure and the axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
            ValueError: If there is nothing to draw, or no such kind, layer or optimizer.
        """
        from lightning_gradwatch.notebook import plotting

        history = self.history
        return plotting.plot(history if optimizer is None else history.of(optimizer), kind, layer, ax)

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.report()!r}"

    def _repr_html_(self) -> str:
        """The verdict, What, Why, Try, and a small heatmap."""
        return self.report().summary()
