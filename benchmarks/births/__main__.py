"""Where NaN is born: how many of the births are found, and how long it takes beside torch's anomaly detection.

Run ``python -m benchmarks.births``. Each birth is replayed once by ``find_birth`` and once under
``torch.autograd.set_detect_anomaly``, one after the other in one process; the ratio of their times is what counts.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from copy import deepcopy
from time import perf_counter
from typing import Any

import torch

from benchmarks.births.cases import CASES, Case
from lightning_gradwatch import Birth, find_birth

ROUNDS = 5


def main() -> None:
    """Print a row for each birth, and the sums."""
    print(f"{'birth':24} {'found':6} {'twin':6} {'time':>7}  what torch says / what we say")
    found, silent, ratios = 0, 0, []
    for name, case in CASES.items():
        birth, is_silent = _birth(case, is_sick=True), _birth(case, is_sick=False) is None
        is_found = birth is not None and (birth.stage, birth.module) == (case.stage, case.module)
        said, ratio = _anomaly(case), _seconds(lambda c=case: _birth(c, True)) / _seconds(lambda c=case: _anomaly(c))  # type: ignore[misc]
        found, silent = found + is_found, silent + is_silent
        ratios.append(ratio)
        print(f"{name:24} {'yes' if is_found else 'NO':6} {'quiet' if is_silent else 'ALARM':6} {ratio:6.1f}x  {said}")
        print(f"{'':49}{birth}")
    print(f"\nfound {found} of {len(CASES)}; quiet on {silent} of {len(CASES)} healthy twins; ", end="")
    print(f"time: {statistics.median(ratios):.1f} x that of set_detect_anomaly on the same step (median)")


def _birth(case: Case, is_sick: bool) -> Birth | None:
    model, batch, loss_fn = case.sick() if is_sick else case.healthy()
    given = case.given(model, is_sick)
    return find_birth(model, batch, loss_fn, **given)


def _anomaly(case: Case) -> str:
    """What torch's own tool says of the same step."""
    model, (inputs, targets), loss_fn = case.sick()
    model = deepcopy(model)
    try:
        with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
            warnings.simplefilter("ignore")
            loss = loss_fn(model(inputs), targets) * case.given(model, True).get("loss_scale", 1.0)
            loss.backward()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return f"nothing; the loss is {float(loss.detach()):.3g}"


def _seconds(run: Callable[[], Any]) -> float:
    times = []
    for _ in range(ROUNDS):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
