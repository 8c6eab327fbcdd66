"""Real processes, one per rank, of a training script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from torch import distributed

from tests.servers import free_port

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 500


def run_ranks(script: str, directory: Path, num_ranks: int = 2, timeout_s: int = TIMEOUT_S) -> list[Any]:
    """Run a script once per rank, as a cluster would start it, and return what each rank has told.

    The script finds the directory in ``sys.argv[1]`` and calls ``tell``.

    Raises:
        AssertionError: If a rank fails, with the end of what it printed; the other ranks are ended.
    """
    path = directory / "train.py"
    path.write_text(script)
    command = ["timeout", "-k", "5", str(timeout_s), sys.executable, str(path), str(directory)]
    port = free_port()
    ranks = []
    for rank in range(num_ranks):
        with _output(directory, rank).open("w") as output:
            environment = _environment(rank, num_ranks, port)
            ranks.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment))
    failed = _first_failure(ranks)
    assert failed is None, f"rank {failed}: {_output(directory, failed).read_text()[-3000:]}"
    return [json.loads(_told(directory, rank).read_text()) for rank in range(num_ranks)]


def tell(what: Any) -> NoReturn:
    """Call last in the script: leave something that JSON can hold to the process that started the ranks, and end.

    It ends the process group, too, and the process at once: threads of engines in C++ now and then abort one that takes
    itself apart meanwhile, when all has been told.
    """
    _told(Path(sys.argv[1]), int(os.environ["RANK"])).write_text(json.dumps(what))
    if distributed.is_initialized():
        distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _told(directory: Path, rank: int) -> Path:
    return directory / f"rank{rank}.json"


def _output(directory: Path, rank: int) -> Path:
    return directory / f"rank{rank}.txt"


def _first_failure(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait until all have ended; one that fails leaves the others waiting for it, so they are ended, too."""
    while True:
        codes = [process.poll() for process in ranks]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is None and None in codes:
            time.sleep(0.05)
            continue
        for process in ranks:
            process.terminate()  # `timeout` passes it on, and kills what does not listen
            process.wait()
        return failed


def _environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": num_ranks, "NODE_RANK": 0}
    own = {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1, "PYTHONPATH": path}
    return {**os.environ, **{name: str(value) for name, value in {**common, **own}.items()}}
