"""Before the first step: which sinks a run has, and whom it sends messages to."""

from __future__ import annotations

from dataclasses import replace

from lightning_gradwatch.asking import ask
from lightning_gradwatch.config import Config
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.host import Host, RunInfo
from lightning_gradwatch.outputs.cards import Cards
from lightning_gradwatch.outputs.flight import FlightRecorder
from lightning_gradwatch.outputs.notify import Addresses, Notifier
from lightning_gradwatch.outputs.record import Record, appends_at_url
from lightning_gradwatch.outputs.recorder import RunRecorder
from lightning_gradwatch.outputs.sinks import Sinks
from lightning_gradwatch.outputs.tensorboard import is_writable
from lightning_gradwatch.paths import at, is_url
from lightning_gradwatch.reading.listing import folder
from lightning_gradwatch.run_state import RunState

_LOST_ADDRESSES = (
    "GradWatch sends no messages to the addresses in `notify`: they hold secrets and so do not travel to other "
    "processes or through pickles. To cure it: put them into the environment variable GRADWATCH_NOTIFY."
)
_NOT_KEPT = (
    "GradWatch: nothing of this run is kept on disk, because it has no logger with a directory. Alerts come on the "
    'console, and report() shows the run while this process lives. To keep it: record="gradwatch_logs".'
)
_SHARED = (
    "GradWatch: {!r} holds an earlier run, and this one is written into the same directory, so that the tab and the "
    "reports show both as one. To keep them apart: give each run a directory of its own as `record`."
)
FOLDER = "gradwatch"
"""In a run of TensorBoard's at a URL, where our files lie: a live TensorBoard follows one event file of a directory."""


def open_sinks(config: Config, host: Host, state: RunState) -> Sinks:
    """The sinks of rank zero; the other ranks have nothing to say.

    Args:
        config: The arguments of the watch.
        host: The training loop.
        state: What is known of the run since before it was resumed; the record in memory is kept there.
    """
    if not host.is_global_zero():
        return Sinks(host)
    run = host.run_info()
    if run.log_dir is not None and is_url(run.log_dir) and any(map(appends_at_url, host.loggers())):
        run = replace(run, log_dir=str(at(run.log_dir) / FOLDER))
    record = _record(config, host, run)
    if record is None and run.log_dir is None and config.record is None and not run.is_rehearsal:
        host.inform(_NOT_KEPT)
    # beside the logs; where these have no directory, beside the record
    log_dir = run.log_dir if run.log_dir is not None or record is None else record.directory
    flight = FlightRecorder(log_dir, config.flight_steps, run.about) if log_dir and config.flight_steps > 0 else None
    # a run that goes on may have told of some alerts already
    is_resumed = host.num_finished_steps() > 0
    notifier = _notifier(config, host, run.name, run.is_rehearsal)
    state.memory.run = run.name or "this run"
    sinks = Sinks(
        host,
        log_dir,
        is_resumed,
        cards=Cards(config.layer_cards, config.group_by),
        run=run.name,
        notifier=notifier,
        flight=flight,
        record=record,
        recorder=RunRecorder(state.record),
        in_loggers=config.record is not False,
        memory=state.memory,
        left_out=state.left_out,
    )
    if is_resumed:
        sinks.repeat(state.alert_log.alerts)
    return sinks


def _record(config: Config, host: Host, run: RunInfo) -> Record | None:
    """An event file of our own: where the user wants one, or else where no logger can hold what it would."""
    if config.record is False or run.is_rehearsal:
        return None
    if config.record is not None:
        if host.num_finished_steps() == 0 and _holds_run(config.record):
            host.warn(_SHARED.format(config.record))
        return Record(config.record)
    if any(map(_holds_all, host.loggers())):
        return None
    directory = run.log_dir or run.spare_dir
    return None if directory is None else Record(directory)


def _holds_run(directory: str) -> bool:
    """Whether there is an event file in a directory; at a URL nobody looks, for that may take long."""
    return not is_url(directory) and bool(folder(directory, ".").event_files)


def _holds_all(logger: object) -> bool:
    """Whether a logger can hold what tab and report show."""
    return is_writable(ask(logger, "experiment")) and not appends_at_url(logger)


def _notifier(config: Config, host: Host, run: str, is_rehearsal: bool) -> Notifier | None:
    """Who sends messages to the addresses of the argument, and to those in the environment; None for no messages."""
    if config.addresses.were_lost:
        host.warn(_LOST_ADDRESSES)
    addresses = [config.addresses]
    try:
        addresses.append(Addresses.from_environment())
    except ValueError as refusal:
        if is_the_users(refusal):
            raise
        host.warn(str(refusal))  # whoever set the variable is not there to read an error
    servers = [server for some in addresses for server in some]
    return Notifier(servers, run, config.tensorboard_url) if servers and not is_rehearsal else None
