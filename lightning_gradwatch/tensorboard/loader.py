"""Where TensorBoard meets GradWatch: whatever goes wrong here, TensorBoard starts."""

from __future__ import annotations

import logging
from typing import Any

from tensorboard.plugins import base_plugin

SAMPLES = 5000
"""Samples that TensorBoard keeps of each of our series; its own defaults are 10 or 100."""


class GradWatchLoader(base_plugin.TBLoader):  # type: ignore[misc]
    """Loads the tab, and asks TensorBoard to keep enough samples for it."""

    def fix_flags(self, flags: Any) -> None:
        """Ask for 5000 samples of each series, unless ``--samples_per_plugin`` says otherwise."""
        chosen = getattr(flags, "samples_per_plugin", None) or {}
        if isinstance(chosen, dict):
            flags.samples_per_plugin = {"gradwatch": SAMPLES, **chosen}

    def load(self, context: base_plugin.TBContext) -> base_plugin.TBPlugin | None:
        """The tab; None, with a word in the log, if it cannot be had."""
        try:
            from lightning_gradwatch.tensorboard.plugin import GradWatchPlugin

            return GradWatchPlugin(context) if context.data_provider is not None else None
        except Exception as failure:
            logging.getLogger("lightning_gradwatch").warning("The GradWatch tab cannot be shown: %r", failure)
            return None
