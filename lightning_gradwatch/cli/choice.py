"""Which runs are meant, and what their state is worth to a shell."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lightning_gradwatch.cli.errors import CommandError
from lightning_gradwatch.cli.logs import Run
from lightning_gradwatch.cli.words import safe
from lightning_gradwatch.core.quantities import BY_NAME
from lightning_gradwatch.paths import Place, is_directory

OK, SICK, UNKNOWN = 0, 1, 2
_MAX_NAMED = 10


def require_directory(directory: Place) -> None:
    """Refuse what is no directory.

    Raises:
        CommandError: If it is none.
    """
    if not is_directory(directory):
        came = "which is a file" if directory.exists() else "which does not exist"
        raise CommandError(
            f"`RUN_DIR` must be a directory in which a training was logged, but {str(directory)!r} came, {came}. "
            "To cure it: give the directory of the logger, such as lightning_logs."
        )


def require_run(name: str | None, directory: Place) -> None:
    """Refuse the name of a run that is not there.

    Raises:
        CommandError: If there is no such directory.
    """
    if name is not None and not is_directory(directory / name):
        found = sorted(path.name for path in directory.iterdir() if is_directory(path))[:_MAX_NAMED]
        raise CommandError(
            f"`--run` must be a directory in {str(directory)!r}, but {name!r} came. "
            f"To cure it: give one of those there are, such as {', '.join(map(repr, found)) or repr('.')}."
        )


def normal(name: str | None) -> str | None:
    """The name of a run without a trailing slash and the like."""
    return None if name is None else os.path.normpath(name)


def watched(runs: Sequence[Run], directory: Place) -> list[Run]:
    """The runs that GradWatch watches.

    Raises:
        CommandError: If there is none.
    """
    found = [run for run in runs if run.is_watched]
    if found:
        return found
    others = f"{len(runs)} runs that GradWatch did not watch" if runs else "no event file and no alerts.jsonl"
    raise CommandError(
        f"`RUN_DIR` must hold what GradWatch wrote, but {str(directory)!r} came, which holds {others}. To cure it: "
        "give the directory of the logger, and train with callbacks=[GradWatch()]."
    )


def the_one(runs: Sequence[Run], directory: Place) -> Run:
    """The only run there is.

    Raises:
        CommandError: If there are several.
    """
    if len(runs) > 1:
        names = ", ".join(repr(run.name) for run in runs[:_MAX_NAMED])
        raise CommandError(
            f"`--run` must name one run where `RUN_DIR` holds several, but it was left out, and {str(directory)!r} "
            f"holds {len(runs)}. To cure it: give one of those there are, such as {safe(names)}."
        )
    return runs[0]


def require_quantity(name: str | None, runs: Sequence[Run]) -> None:
    """Refuse a quantity that neither GradWatch nor one of the runs knows.

    Raises:
        CommandError: If nobody knows it.
    """
    own = {name for run in runs if run.catalogue is not None for name in run.catalogue.own_quantities}
    own |= {one["name"] for run in runs for one in run.left_out if one["kind"] == "quantity"}
    if name is not None and name not in {*BY_NAME, *own}:
        raise CommandError(
            f"`--quantity` must be a quantity that GradWatch or a run in `RUN_DIR` knows, but {name!r} came. "
            f"To cure it: give one of {', '.join(map(safe, [*BY_NAME, *sorted(own)]))}."
        )


def exit_status(runs: Sequence[Run]) -> int:
    """1 if an alert is open in one of the runs, 2 if nobody can tell, 0 otherwise; a notice is no alert."""
    statuses = {run.verdict.status for run in runs}
    if "sick" in statuses:
        return SICK
    return UNKNOWN if not statuses or statuses & {"unreadable", "not_watched"} else OK
