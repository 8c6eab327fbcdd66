"""What the runs say: harm and rescue of each method, and every task by itself."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from benchmarks.clipping.methods import NONE, SWEEP
from benchmarks.clipping.race import FIRST, Key, Run, jobs, methods
from benchmarks.clipping.tasks import TASKS, Task

T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 11: 2.20, 12: 2.18}
"""Student's t at 97.5 %, by degrees of freedom."""


class Table:
    """Runs of some tasks.

    Args:
        runs: All runs; seeds and methods of which some are missing are left out.
        is_held_out: Whether those tasks are shown that were held out, or those that were not.
    """

    def __init__(self, runs: dict[Key, Run], is_held_out: bool) -> None:
        self._runs = runs
        self._tasks = [task for task in TASKS if task.is_held_out == is_held_out]
        wanted = Counter(seed for *_, method, seed in jobs(len(T_95) + 1, is_held_out) if method in FIRST)
        found = Counter(seed for key in runs for *_, method, seed in [key] if method in FIRST and self._is_of(key))
        self._seeds = [seed for seed in wanted if found[seed] == wanted[seed]]

    def _is_of(self, key: Key) -> bool:
        return key[0] in {task.name for task in self._tasks}

    def _is_complete(self, method: str, case: str) -> bool:
        return all(len(self._of(task, case, method)) == len(self._seeds) for task in self._tasks_with(case))

    def _of(self, task: Task, case: str, method: str) -> list[Run]:
        return [run for seed in self._seeds if (run := self._runs.get((task.name, case, method, seed))) is not None]

    def _finals(self, task: Task, case: str, method: str) -> list[float]:
        return [run.final for run in self._of(task, case, method)]

    def _tasks_with(self, case: str) -> list[Task]:
        return [task for task in self._tasks if task.case(case) is not None and self._of(task, case, NONE)]

    def best_fixed(self, task: Task, is_rare: bool) -> str | None:
        """The fixed norm with the smallest mean loss, of all or of those that clip less than half of the steps."""

        def clips_rarely(method: str) -> bool:
            return statistics.fmean(run.clipped for run in self._of(task, "edge", method)) < 0.5

        able = [method for method in SWEEP if not is_rare or clips_rarely(method)]
        able = [method for method in able if not all(run.is_lost for run in self._of(task, "edge", method))]
        return min(able, key=lambda method: statistics.fmean(self._finals(task, "edge", method)), default=None)

    def harm(self, method: str) -> list[float]:
        """For each healthy task the progress that is lost, in percent of the unclipped runs' that were not lost."""
        found = []
        for task in self._tasks_with("healthy"):
            both = zip(self._of(task, "healthy", method), self._of(task, "healthy", NONE), strict=True)
            pairs = [(own, free) for own, free in both if not free.is_lost]
            if pairs:
                progress = statistics.fmean(free.first - free.final for _, free in pairs)
                found.append(100 * statistics.fmean(own.final - free.final for own, free in pairs) / progress)
        return found

    def rescue(self, method: str) -> list[float]:
        """For each task at the edge what is gained over no clipping, in percent of the best fixed norm's; 0 to 100."""

        def gained(task: Task) -> float:
            free, best, own = (
                statistics.fmean(self._finals(task, "edge", name))
                for name in (NONE, self.best_fixed(task, is_rare=False) or NONE, method)
            )
            return min(max(100 * (free - own) / (free - best), 0.0), 100.0)

        return list(map(gained, self._tasks_with("edge")))

    def clipped(self, method: str, case: str) -> float:
        """Share of the steps after the first hundred, the mean over tasks, in percent."""
        shares = [[run.clipped for run in self._of(task, case, method)] for task in self._tasks_with(case)]
        return 100 * statistics.fmean(map(statistics.fmean, shares))

    def most_clipped(self, method: str) -> float:
        """The same of the healthy task that is clipped most."""
        shares = [[run.clipped for run in self._of(task, "healthy", method)] for task in self._tasks_with("healthy")]
        return 100 * max(map(statistics.fmean, shares))

    def summary(self) -> str:
        """A row per method."""
        names = [name for name in methods("edge") if name in methods("healthy") and self._is_complete(name, "edge")]
        names = [name for name in names if self._is_complete(name, "healthy")]
        lines = [
            "| method | harm: progress lost where all was well | steps clipped (most in one task) | "
            "rescue: of the best fixed norm's gain at the edge | steps clipped |",
            "|---|---|---|---|---|",
        ]
        for name in names:
            harm, rescue = interval(self.harm(name)), interval(self.rescue(name))
            shares = f"{self.clipped(name, 'healthy'):.0f} % ({self.most_clipped(name):.0f} %)"
            lines.append(f"| {name} | {harm} % | {shares} | {rescue} % | {self.clipped(name, 'edge'):.0f} % |")
        return "\n".join(lines)

    def details(self, case: str) -> str:
        """A row per task, a column per method: the final loss, with its interval, and how many runs were lost."""
        names = [name for name in methods(case) if name not in SWEEP or case == "healthy"]
        names = [name for name in names if self._is_complete(name, case)]
        heads = [*names, *(["best fixed norm", "best that clips less than half"] if case == "edge" else [])]
        lines = ["| task | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        for task in self._tasks_with(case):
            found = task.case(case)
            chosen = list(names) if case == "healthy" else [*names, self.best_fixed(task, False) or ""]
            cells = [self._cell(task, case, name) for name in chosen]
            if case == "edge":
                cells[-1] += f" (at {chosen[-1].split()[-1]})"
                rare = self.best_fixed(task, True)
                cells.append("none" if rare is None else f"{self._cell(task, case, rare)} (at {rare.split()[-1]})")
            lines.append(f"| {task.name}, {found[0] if found else ''} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def _cell(self, task: Task, case: str, method: str) -> str:
        own = self._of(task, case, method)
        lost = sum(run.is_lost for run in own)
        text = interval([run.final for run in own], "3")
        return f"{text}, {lost} of {len(own)} lost" if lost else text


def interval(values: Sequence[float], places: str = "1") -> str:
    """Mean and half of the 95 % confidence interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{places}f}"
    half = T_95.get(len(values) - 1, 2.0) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.{places}f} ± {half:.{places}f}"
