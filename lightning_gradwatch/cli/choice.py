"""Which runs are meant, and what their state is worth to a shell."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from lightning_gradwatch.cli.errors import CommandError
from lightning_gradwatch.cli.logs import Logs, Run
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


def runs_of(options: argparse.Namespace) -> tuple[Logs, list[Run]]:
    """The runs that the arguments mean, and where they are.

    Raises:
        CommandError: If there is none.
    """
    require_directory(options.run_dir)
    logs = Logs(options.run_dir, _named(options.run, options.run_dir))
    return logs, meant(watched(logs.reload(), options.run_dir), options)


def meant(runs: list[Run], options: argparse.Namespace) -> list[Run]:
    """All of the runs; or only the one that was written last, where that is wanted."""
    return [max(runs, key=lambda run: run.wall_time)] if options.latest and runs else runs


def _named(name: str | None, directory: Place) -> str | None:
    """The name of the run that is meant, as the logs have it; None for all.

    A run that lies in the directory itself goes by the name of that, too, as reports print it.

    Raises:
        CommandError: If there is no such run.
    """
    if name is None:
        return None
    found, wanted = Logs.names(directory), os.path.normpath(name)
    if wanted not in found and os.curdir in found and name == directory.resolve().name:
        return os.curdir
    if found and wanted not in found:
        named = ", ".join(safe(repr(one)) for one in found[:_MAX_NAMED])
        raise CommandError(
            f"`--run` must be a run in {str(directory)!r}, but {name!r} came. "
            f"To cure it: give one of those there are, such as {named}."
        )
    return wanted


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
            f"holds {len(runs)}. To cure it: give one of those there are, such as {safe(names)}, or --latest."
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
