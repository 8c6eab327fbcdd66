"""The command line: arguments in, exit status out."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from lightning_gradwatch.cli.errors import CommandError
from lightning_gradwatch.core.quantities import BY_NAME
from lightning_gradwatch.paths import at
from lightning_gradwatch.reading.norms import NORMS
from lightning_gradwatch.remote import RemoteError

ERROR = 2
_EXIT = "Exit status: 1 if an alert is open, 0 if none is, 2 if that cannot be told."
_MAX_DIGITS = 18
"""Of a step, which has room in 64 bits."""
_EXTRA = {"rich": "this view needs", "shtab": "shell completion needs"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Those of the command line; None for the real ones.

    Returns:
        1 if an alert is open, 0 if none is, 2 if that cannot be told.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        options = build_parser().parse_args(arguments)
        status: int = import_module(options.module).run(options)
        sys.stdout.flush()
    except (CommandError, RemoteError) as error:
        return _refuse(str(error))
    except ModuleNotFoundError as missing:
        if missing.name not in _EXTRA:
            raise
        need = f"{_EXTRA[missing.name]} {missing.name}, which is not installed"
        return _refuse(
            f"{need}. To cure it: pip install 'lightning-gradwatch[report]' (--json and --html need neither)."
        )
    except BrokenPipeError:  # whoever reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
    except Exception:  # Python's own status would be 1, which says that an alert is open
        traceback.print_exc()
        return ERROR
    return status


def build_parser() -> argparse.ArgumentParser:
    """The arguments of ``gradwatch``."""
    parser = argparse.ArgumentParser(prog="gradwatch", description="Read what GradWatch wrote about a training.")
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version of GradWatch, and exit")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "fish", "tcsh", "powershell"),
        help="print a script that completes this command in your shell, and exit",
    )
    names = "{report,watch,alerts,snapshot,replay,versions}"
    commands = parser.add_subparsers(title="commands", required=True, metavar=names)
    _add_report(commands)
    _add_watch(commands)
    _add_alerts(commands)
    _add_snapshot(commands)
    _add_replay(commands)
    _add_versions(commands)
    return parser


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "Say how a run is: verdict, alerts with cause and remedies, heatmap and depth profile."
    parser = commands.add_parser("report", help="say how a run is", description=text, epilog=_EXIT)
    _add_common(parser)
    _add_json(parser)
    parser.add_argument("--html", type=at, metavar="FILE", help="write one self-contained page instead")
    parser.set_defaults(module="lightning_gradwatch.cli.reporting")


def _add_watch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "Follow a run while it is written, until Ctrl-C. The directory need not exist yet."
    parser = commands.add_parser("watch", help="follow a live run", description=text, epilog=_EXIT)
    _add_common(parser)
    parser.add_argument(
        "--every", type=_seconds, default=5.0, metavar="SECONDS", help="how often to look for news (default: 5)"
    )
    parser.add_argument("--until-alert", action="store_true", help="end as soon as an alert is open")
    text = "end when nothing has been written for so long, counted from the start of this command"
    parser.add_argument("--until-idle", type=_seconds, metavar="SECONDS", help=text)
    parser.set_defaults(module="lightning_gradwatch.cli.watching")


def _add_alerts(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "List the alerts of every run: what is wrong, why, and what to try."
    parser = commands.add_parser("alerts", help="list the alerts of every run", description=text, epilog=_EXIT)
    _add_place(parser, "which one of several runs (default: all)")
    _add_json(parser)
    parser.add_argument("--since", type=_step, metavar="STEP", help="leave out what was over before this step")
    parser.set_defaults(module="lightning_gradwatch.cli.alerts")


def _add_snapshot(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "Print every number of every layer around a step, with the loss and the total norm."
    parser = commands.add_parser("snapshot", help="print all layers around a step", description=text, epilog=_EXIT)
    _add_place(parser, "which one, where there are several runs")
    _add_json(parser)
    parser.add_argument("--step", type=_step, metavar="STEP", help="around which step (default: the last one)")
    parser.set_defaults(module="lightning_gradwatch.cli.snapshot")


def _add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "Replay the step of a flight record that was not finite, and say where the NaN was born."
    epilog = "Exit status: 1 if the place was found, 0 if the step is finite, 2 if that cannot be told."
    parser = commands.add_parser("replay", help="find where NaN was born", description=text, epilog=epilog)
    parser.add_argument("flight", type=at, metavar="FLIGHT", help="a flight-<step>.jsonl.gz, from beside the logs")
    text = "one from before that step, with whole weights"
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help=text)
    text = "your function that returns the model and its loader, then loss function and optimizer if there are any"
    parser.add_argument("--entry", required=True, metavar="MODULE:FUNCTION", help=text)
    text = "which step (default: the first one from the checkpoint on that is not finite)"
    parser.add_argument("--step", type=_step, metavar="STEP", help=text)
    _add_json(parser)
    parser.set_defaults(module="lightning_gradwatch.cli.replaying")


def _add_versions(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "Print the versions that a bug report needs: of GradWatch, Python, and what training uses."
    parser = commands.add_parser("versions", help="print what a bug report needs", description=text)
    parser.set_defaults(module="lightning_gradwatch.cli.versions")


def _add_place(parser: argparse.ArgumentParser, which: str) -> None:
    text = "where a run, or several, have been logged: a directory, or a URL such as s3://bucket/logs"
    parser.add_argument("run_dir", type=at, metavar="RUN_DIR", help=text)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--run", metavar="NAME", help=which)
    chosen.add_argument("--latest", action="store_true", help="only the run that was written last")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for programs instead")


def _add_common(parser: argparse.ArgumentParser) -> None:
    _add_place(parser, "which one of several runs (default: the sickest)")
    names = ", ".join(BY_NAME)
    parser.add_argument(
        "--quantity",
        metavar="NAME",
        help=f"what the heatmap shows: {names}, or one of the run's own (default: what suits the run)",
    )
    parser.add_argument(
        "--norm",
        choices=list(NORMS),
        help="how gradient norms are shown: per element (rms), of a whole layer (total), or relative to the layer's "
        "median (default: rms, where the log allows it)",
    )
    parser.add_argument(
        "--matrices",
        action="store_true",
        help="leave out normalisation layers, and biases by themselves, unless an alert is about them",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds <= 1e6:
        raise argparse.ArgumentTypeError(f"it must be a number of seconds from 0.1 to 1e6, but {text!r} came.")
    return seconds


def _step(text: str) -> int:
    if not text.isdecimal() or len(text) > _MAX_DIGITS:
        raise argparse.ArgumentTypeError(f"it must be a whole number from 0 on, but {text!r} came; give a step.")
    return int(text)


def _refuse(sentence: str) -> int:
    sys.stderr.write(f"gradwatch: {sentence}\n")
    return ERROR


class _PrintVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from lightning_gradwatch import __version__

        sys.stdout.write(f"lightning-gradwatch {__version__}\n")
        parser.exit()


class _PrintCompletion(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, _namespace: object, values: object, _option: object = None
    ) -> None:
        import shtab

        commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        files = dict.fromkeys(("html", "flight", "checkpoint"), shtab.FILE)
        for command in commands.choices.values():
            for action in command._actions:
                kind = {"run_dir": shtab.DIRECTORY, **files}.get(action.dest)
                if kind is not None:
                    action.complete = kind
                if action.dest == "quantity":  # a run may have more of them, so they are no rule of the parser
                    action.choices = tuple(BY_NAME)
        sys.stdout.write(shtab.complete(parser, shell=str(values)) + "\n")
        parser.exit()
