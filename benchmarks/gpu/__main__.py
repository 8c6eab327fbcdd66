"""Use: `python -m benchmarks.gpu [--budget 450] [--out gpu_results] [--only NAME ...]`.

Needs torch and a CUDA device, and nothing else; what needs Lightning, TensorBoard, W&B or pytest runs where they are.
Pieces run in the order of their importance. After each row `gpu.json` and `gpu.md` are written anew, so that whatever
ends the run, what was measured is there. A row that takes too long is interrupted; where even that does not help, the
process ends half a minute after the budget. `--dry` tries all of it in small, on a CPU too.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
from pathlib import Path

import torch

from . import correct, cost, with_lightning
from .pieces import Setting, run
from .report import Report

PIECES = (*correct.PIECES, *with_lightning.FIRST, *cost.PIECES, *with_lightning.LAST)
LAST_SECONDS = 30.0
"""After the budget, before a process that hangs is ended."""


def main() -> int:
    """Run what there is time for; 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=450.0, help="seconds in all")
    parser.add_argument("--out", type=Path, default=Path("gpu_results"), help="directory of gpu.json and gpu.md")
    parser.add_argument("--only", nargs="*", default=[], help="names of pieces; see gpu.md")
    parser.add_argument("--dry", action="store_true", help="small models and few steps, to see that everything runs")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.dry:
        print("This needs a CUDA device. `--dry` tries the script without one.", file=sys.stderr)
        return 2
    unknown = set(arguments.only) - {piece.name for piece in PIECES}
    if unknown:
        parser.error(f"--only takes names of pieces, but {sorted(unknown)} came; there are "
                     f"{', '.join(piece.name for piece in PIECES)}")  # fmt: skip
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the size that Hopper has anyway, and reproducible
    faulthandler.dump_traceback_later(arguments.budget + LAST_SECONDS, exit=True)
    setting = Setting("cuda" if torch.cuda.is_available() else "cpu", arguments.dry)
    report = Report(arguments.out, setting)
    run([p for p in PIECES if not arguments.only or p.name in arguments.only], setting, arguments.budget, report)
    faulthandler.cancel_dump_traceback_later()
    print(report.directory / "gpu.md", flush=True)
    return int(report.has_failed)


if __name__ == "__main__":
    sys.exit(main())
