"""``gradwatch versions``: what a bug report needs, read from what is installed; nothing of it is imported."""

from __future__ import annotations

import argparse
import platform
import sys
from importlib import metadata

PACKAGES = (
    "lightning-gradwatch",
    "torch",
    "lightning",
    "pytorch-lightning",
    "tensorboard",
    "numpy",
    "jsonargparse",
    "apprise",
    "rich",
)


def run(_options: argparse.Namespace) -> int:
    """Print one line per package, then Python and the platform.

    Returns:
        0.
    """
    found = {name: _installed(name) for name in PACKAGES}
    found["Python"] = f"{platform.python_version()} ({platform.python_implementation()})"
    found["platform"] = platform.platform()
    width = max(map(len, found)) + 2
    sys.stdout.write("".join(f"{name:{width}}{version}\n" for name, version in found.items()))
    return 0


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
