"""Runs the cases of the zoo in processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from tqdm import tqdm  # type: ignore[import-untyped]

from .run import prepare

T = TypeVar("T")


def run_all(run: Callable[[str, int], T], names: Sequence[str], seed: int, workers: int) -> list[T]:
    """What ``run`` returns for the name of each case and the seed, in the order of the names; with a progress bar."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=prepare) as pool:
        runs = [pool.submit(run, name, seed) for name in names]
        for done in tqdm(as_completed(runs), total=len(runs), unit="case", disable=None):
            done.result()  # what went wrong is raised at once
    return [each.result() for each in runs]
