"""What of the event files cannot be read: TensorBoard's data provider does not tell, so the files are looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from threading import Thread

from lightning_gradwatch.reading.damage import Damage, unlistable
from lightning_gradwatch.reading.event_file import EventFile
from lightning_gradwatch.reading.listing import Folder, folder, folders

_PATIENCE_SECONDS = 0.25
"""How long a question waits for a look; it gets what is known by then, and the next one more."""


class Inspector:
    """Looks at the event files below a directory, in a thread of its own, at each of their bytes once.

    Args:
        directory: The local directory that TensorBoard shows.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._files: dict[str, EventFile] = {}
        self._damage: dict[str, tuple[Damage, ...]] = {}
        self._thread = Thread()

    def damage(self, runs: Sequence[str]) -> Mapping[str, Sequence[Damage]]:
        """What cannot be read, as far as it is known by now.

        Args:
            runs: Those that TensorBoard knows: some may lie behind a link, where nobody else looks.

        Returns:
            The damage by the name of the run; also of runs in which TensorBoard has found nothing.
        """
        if not self._thread.is_alive():
            self._thread = Thread(target=self._look, args=[runs], daemon=True)
            self._thread.start()
            self._thread.join(_PATIENCE_SECONDS)
        return dict(self._damage)

    def _look(self, runs: Sequence[str]) -> None:
        """Look at what has been written since, at the newest first."""
        found = {one.name: one for one in folders(self._directory) if _can_be_asked_for(one.name)}
        found.update({run: folder(self._directory, run) for run in runs if run not in found})
        known = {}
        for name, one in sorted(found.items(), key=lambda item: item[1].event_files[:1], reverse=True):
            if damage := tuple(self._damage_of(one)):
                known[name] = self._damage[name] = damage
        self._damage = known

    def _damage_of(self, found: Folder) -> Iterator[Damage]:
        if found.failure is not None:
            yield unlistable(found.failure)
        for name in found.event_files:
            path = os.path.join(self._directory, found.name, name)
            if path not in self._files or self._files[path].is_replaced:
                self._files[path] = EventFile(path)
            self._files[path].skip()
            if (damage := self._files[path].damage) is not None:
                yield damage


def _can_be_asked_for(name: str) -> bool:
    """Whether the name of a run can stand in an address: one that is no UTF-8 cannot."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def inspector_of(logdir: str | None) -> Inspector | None:
    """The inspector of what TensorBoard was told to show; None for a place that is no local directory, or several."""
    is_local = bool(logdir) and "://" not in str(logdir)
    return Inspector(os.path.expanduser(str(logdir))) if is_local else None
