"""Before the first step: which sinks a run has, and whom it sends messages to."""

from __future__ import annotations

from collections.abc import Collection

from lightning_gradwatch.asking import ask
from lightning_gradwatch.config import Config
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.host import Host, RunInfo
from lightning_gradwatch.outputs.cards import Cards
from lightning_gradwatch.outputs.flight import FlightRecorder
from lightning_gradwatch.outputs.notify import Addresses, Notifier
from lightning_gradwatch.outputs.pieces import keeps_events
from lightning_gradwatch.outputs.record import Record
from lightning_gradwatch.outputs.recorder import RunRecorder
from lightning_gradwatch.outputs.sinks import Sinks
from lightning_gradwatch.outputs.tensorboard import is_writable
from lightning_gradwatch.run_state import RunState

_LOST_ADDRESSES = (
    "GradWatch sends no messages to the addresses in `notify`: they hold secrets and so do not travel to other "
    "processes or through pickles. To cure it: put them into the environment variable GRADWATCH_NOTIFY."
)
_LOSING = (
    "GradWatch: the file system of {place} cannot append to a file, so that TensorBoard's own writer loses events "
    "there, yours too. GradWatch keeps a record of its own beside them. To cure it: log to a local directory."
)


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
    losing = _losing(host)
    record = _record(config, host, run, losing)
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
        losing=losing,
        memory=state.memory,
    )
    if is_resumed:
        sinks.repeat(state.alert_log.alerts)
    return sinks


def _losing(host: Host) -> list[object]:
    """Loggers whose event file lies where nothing can be appended to it, which the user is told of."""
    found = []
    for logger in host.loggers():
        experiment = ask(logger, "experiment")
        if is_writable(experiment) and not keeps_events(experiment):
            host.warn(_LOSING.format(place=experiment.log_dir))
            found.append(logger)
    return found


def _others(host: Host, losing: Collection[object]) -> list[object]:
    """The loggers that keep what is written to them."""
    return [logger for logger in host.loggers() if not any(logger is other for other in losing)]


def _record(config: Config, host: Host, run: RunInfo, losing: Collection[object]) -> Record | None:
    """An event file of our own: where the user wants one, or else where no logger can hold what it would."""
    if config.record is False or run.is_rehearsal:
        return None
    if config.record is not None:
        return Record(config.record)
    if any(map(_holds_all, _others(host, losing))):
        return None
    directory = run.log_dir or run.spare_dir
    return None if directory is None else Record(directory)


def _holds_all(logger: object) -> bool:
    """Whether a logger can hold what tab and report show."""
    return is_writable(ask(logger, "experiment"))


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
