"""``gradwatch replay``: where the NaN of a step was born, as text, or as JSON for programs."""

from __future__ import annotations

import argparse
import json
import sys
import warnings

from lightning_gradwatch.births.records import Birth
from lightning_gradwatch.births.remedies import remedy_for
from lightning_gradwatch.births.replaying import Line, choose, load_checkpoint, load_entry, replay
from lightning_gradwatch.cli import words
from lightning_gradwatch.cli.errors import CommandError
from lightning_gradwatch.outputs import flight


def run(options: argparse.Namespace) -> int:
    """Replay a step of a flight record.

    Returns:
        1 if the place was found, 0 if the step is finite.

    Raises:
        CommandError: If the step cannot be replayed.
    """
    try:
        first, lines = flight.read(options.flight)
    except (OSError, ValueError, EOFError) as failure:
        raise CommandError(f"FLIGHT must be a flight record, but {options.flight} came: {failure}.") from failure
    if not lines:
        raise CommandError(f"FLIGHT must be a record of at least one step, but {options.flight} came, which has none.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            entry = load_entry(options.entry)
            start = load_checkpoint(options.checkpoint, entry)
            span, before = choose(lines, start, options.step)
            if len(span) > 1:
                _say(f"taking {len(span) - 1:,} steps from the checkpoint to step {span[-1]['step']:,} again")
            line, birth = replay(entry, first, span, before)
        except (ValueError, RuntimeError) as failure:
            raise CommandError(str(failure).removeprefix("GradWatch: ")) from failure
    if options.json:
        facts = {"step": line["step"], "epoch": line["epoch"], "batch_idx": line["batch_idx"]}
        document = {"schema": flight.SCHEMA_VERSION, **facts, "birth": None if birth is None else birth.as_dict()}
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        sys.stdout.write(_in_words(line, birth))
    return int(birth is not None)


def _say(sentence: str) -> None:
    sys.stderr.write(f"gradwatch: {sentence}\n")


def _in_words(line: Line, birth: Birth | None) -> str:
    where = f"step {line['step']:,} (epoch {line['epoch']}, batch {line['batch_idx']})"
    if birth is None:
        return (
            f"{where} is finite when it is replayed. What it had in the run may come from other random numbers (those "
            "of dropout within an epoch are not known), from mixed precision, or from the batch of another rank.\n"
        )
    parts = [f"{where}: {words.safe(str(birth))}."]
    if birth.code:
        parts.append(f"  {birth.line}  {words.safe(birth.code)}")
    if (remedy := remedy_for(birth.as_dict())) is not None:
        parts.append(f"Try: {remedy}.")
    return "\n".join(parts) + "\n"
