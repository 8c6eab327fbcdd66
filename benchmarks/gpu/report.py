"""One JSON and one Markdown file, written anew after each row."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .pieces import Piece, Row, Setting


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def about(setting: Setting) -> dict[str, Any]:
    """The machine and the versions."""
    packages = ("torch", "lightning", "pytorch-lightning", "tensorboard", "wandb", "numpy")
    device: dict[str, Any] = {"device": "CPU (a dry run says nothing about GPUs)"}
    if setting.is_gpu:
        properties = torch.cuda.get_device_properties(0)
        device = {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return {
        **device,
        "python": platform.python_version(),
        "is_dry": setting.is_dry,
        "versions": {name: found for name in packages if (found := _version(name)) is not None},
    }


class Report:
    """What came so far.

    Args:
        directory: Where the files go; made if it is not there.
        setting: Where this runs.

    Attributes:
        has_failed: Whether a check came out wrong.
    """

    def __init__(self, directory: Path, setting: Setting) -> None:
        self.directory = directory
        self.has_failed = False
        self._about = about(setting)
        self._pieces: dict[str, dict[str, Any]] = {}
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, piece: Piece, row: Row, seconds: float) -> None:
        """Take a row in, print it, and write both files."""
        known = self._pieces.setdefault(piece.name, {"title": piece.title, "rows": []})
        known["rows"].append({**asdict(row), "seconds": round(seconds, 2)})
        self.has_failed |= row.status == "WRONG"
        told = f"{_figures(row.figures)} {_first_and_last(row.note)}"
        print(f"{piece.name:12} {row.status:9} {row.name}: {told}".rstrip(), flush=True)
        document = {"about": self._about, "pieces": self._pieces}
        self._write("gpu.json", json.dumps(document, indent=1, default=str) + "\n")
        self._write("gpu.md", self._markdown())

    def _write(self, name: str, text: str) -> None:
        """In one piece, whatever ends the process meanwhile."""
        path = self.directory / name
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").replace(path)

    def _markdown(self) -> str:
        lines = ["# GradWatch on a GPU", ""]
        lines += [f"- {name}: {value}" for name, value in self._about.items()]
        for name, piece in self._pieces.items():
            lines += [
                "",
                f"## {piece['title']} (`--only {name}`)",
                "",
                "| | | figures | seconds |",
                "|---|---|---|---|",
            ]
            for row in piece["rows"]:
                told = " ".join(part for part in (_figures(row["figures"]), _first_and_last(row["note"])) if part)
                lines.append(f"| {row['name']} | {row['status']} | {told} | {row['seconds']} |")
        return "\n".join(lines) + "\n"


def _figures(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in figures.items())  # fmt: skip


def _first_and_last(note: str) -> str:
    """A note in one line: of a traceback what was raised; the whole is in the JSON."""
    lines = [line for line in note.strip().splitlines() if line.strip()]
    return (lines[-1] if len(lines) > 1 else "".join(lines)).replace("|", "\\|")
