"""What the page costs that loggers get: seconds of a core beside the training, and milliseconds within it.

Simulated records, as in ``benchmarks/event_files.py``, go through the maker that trainings use:

    python -m benchmarks.pages [--longest 1000000]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

from benchmarks.event_files import seconds_of_python_loader, write_record
from lightning_gradwatch.outputs import page
from lightning_gradwatch.outputs.page import PageMaker

_COLUMNS = (
    ("steps", 9),
    ("layers", 7),
    ("events MB", 10),
    ("page MB", 8),
    ("CPU s", 6),
    ("times reading", 14),
    ("ms here", 8),
)


def cpu_seconds() -> float:
    """Of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def row(num_steps: int, num_layers: int) -> tuple[int, int, str, str, str, str, str]:
    """One record: its size and that of its page, what the page took beside us, and what beginning it took here."""
    with tempfile.TemporaryDirectory() as folder:
        write_record(Path(folder), num_steps, num_layers)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        reading = seconds_of_python_loader(Path(folder))
        maker, before = PageMaker(folder), cpu_seconds()
        start = time.perf_counter()
        maker.begin()
        here = time.perf_counter() - start
        while (made := maker.take()) is None:
            time.sleep(0.1)
        took = cpu_seconds() - before
        kept = made.stat().st_size
    figures = f"{size / 1e6:.1f}", f"{kept / 1e6:.1f}", f"{took:.1f}", f"{took / reading:.1f}", f"{1000 * here:.1f}"
    return num_steps, num_layers, *figures


def main() -> None:
    """Make the pages and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=1_000_000)
    longest = parser.parse_args().longest
    page.LIMIT_S = 3600.0
    print(*(f"{name:>{width}}" for name, width in _COLUMNS))
    for num_steps, num_layers in ((100, 20), (1_000, 200), (10_000, 200), (longest, 200), (5_000, 5_000)):
        print(
            *(f"{cell:>{width}}" for cell, (_, width) in zip(row(num_steps, num_layers), _COLUMNS, strict=True)),
            flush=True,
        )


if __name__ == "__main__":
    main()
