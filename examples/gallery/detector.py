"""Object detector: Ultralytics' YOLO26, untrained, on scenes of real digits; with sigmoids, without BatchNorm it dies.

There are more than a hundred convolutions between the image and the loss, which is Ultralytics' own. As shipped, each
convolution is normalised and followed by a SiLU, and the gradient reaches the first of them. The sick network comes
from the same file, but a sigmoid replaces every SiLU, and every BatchNorm is removed.

    python examples/gallery/detector.py [--directory D] [--steps N]
"""

from __future__ import annotations

from typing import Any, cast

import pytorch_lightning as pl
import torch
from common import Network, Pair, Row, Task, digits, show
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

SIDE, SCENES = 96, 256
Scene = tuple[Tensor, Tensor, Tensor]


def scenes() -> list[Scene]:
    """Grey images with one to three digits: pixels ``(3, SIDE, SIDE)``, classes, boxes (centre and size, in shares)."""
    random = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=random))

    images, labels = digits()
    images = (images - images.min()) / (images.max() - images.min())
    made = []
    for _ in range(SCENES):
        canvas, classes, boxes = 0.2 * torch.rand(SIDE, SIDE, generator=random), [], []
        for third in torch.randperm(3, generator=random)[: draw(1, 4)].tolist():  # one per column: none covers another
            index, size = draw(0, len(images)), draw(20, 32)
            left, top = third * SIDE // 3 + draw(0, SIDE // 3 - size + 1), draw(0, SIDE - size)
            digit = F.interpolate(images[index].reshape(1, 1, 8, 8), size=(size, size), mode="bilinear")[0, 0]
            canvas[top : top + size, left : left + size] += 0.8 * digit
            classes.append(int(labels[index]))
            boxes.append([(left + size / 2) / SIDE, (top + size / 2) / SIDE, size / SIDE, size / SIDE])
        made.append((canvas.clamp(0, 1).expand(3, -1, -1), torch.tensor(classes).float(), torch.tensor(boxes)))
    return made


def collate(batch: list[Scene]) -> dict[str, Tensor]:
    """The batch that Ultralytics' loss wants."""
    images, classes, boxes = zip(*batch, strict=True)
    owners = torch.cat([torch.full((len(own),), float(i)) for i, own in enumerate(classes)])
    return {"img": torch.stack(images), "batch_idx": owners, "cls": torch.cat(classes), "bboxes": torch.cat(boxes)}


def yolo() -> DetectionModel:
    """The nano model, from its file, for ten classes."""
    model = DetectionModel("yolo26n.yaml", nc=10, verbose=False)
    model.args = get_cfg()
    return model


def spoiled(model: nn.Module) -> nn.Module:
    """Swap every SiLU for a sigmoid and every BatchNorm for nothing."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.SiLU):
                setattr(module, name, nn.Sigmoid())
            elif isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return model


class Detector(pl.LightningModule):
    """Trains on the detector's own loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Boxes, classes and distances together, per image."""
        parts, _ = self.model.loss(batch)  # type: ignore[operator]
        loss: Tensor = parts.sum() / len(batch["img"])
        self.log("loss", loss, prog_bar=True, batch_size=len(batch["img"]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def task(model: nn.Module) -> Task:
    """Find the digits."""
    return Task(
        Detector(model), DataLoader(cast("Dataset[Scene]", scenes()), batch_size=8, shuffle=True, collate_fn=collate)
    )


ROW = Row(
    name="detector",
    title="Object detector: YOLO26 on scenes of digits",
    steps=100,
    pairs=(
        Pair(
            Network("sigmoids, no normalisation", lambda: task(spoiled(yolo()))),
            "vanishing",
            "saturating_activation",
            (Network("as shipped", lambda: task(yolo())),),
        ),
    ),
    measure="YOLO's loss per image",
)

if __name__ == "__main__":
    show(ROW)
