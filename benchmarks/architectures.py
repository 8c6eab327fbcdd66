"""Trains real architectures at their default initialisation under GradWatch, which must stay silent on all of them.

Nothing is downloaded: the networks are built from configurations (small in width, realistic in depth), the data are
Python's own reference manual, scikit-learn's digits and melodies of sines. Every network trains a few steps in a real
``Trainer`` on the CPU. The exit status is 1 if an alert was raised, GradWatch failed, or nothing could be run at all.

Use: `python -m benchmarks.architectures [--only NAME...] [--steps 50] [--seed 0] [--profile]`. It needs
`pip install transformers`; an architecture whose package is missing is named and skipped.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import statistics
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pydoc_data.topics import topics
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers.logger import Logger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_gradwatch import Alert, GradWatch, GradWatchWarning

Batch = dict[str, Tensor]

LEARNING_RATE = 3e-4
WARM_UP_STEPS = 10
NUM_BYTES = 256
MASK, START, VOCABULARY = 256, 257, 260
IGNORED = -100
SAMPLE_RATE = 16000
NUM_PITCHES = 16
MIN_PROFILE = 3
WIDEST_BAR = 60


# --- data ------------------------------------------------------------------------------------------------------------


def _serve(tensors: Batch, size: int) -> DataLoader[Any]:
    """Batches of ``size`` rows in an order of their own, for ever."""
    rows = len(next(iter(tensors.values())))
    generator = torch.Generator().manual_seed(0)

    def batches() -> Iterator[Batch]:
        while True:
            for chosen in torch.randperm(rows, generator=generator).split(size):
                if len(chosen) == size:
                    yield {name: tensor[chosen] for name, tensor in tensors.items()}

    return DataLoader(_Stream(batches), batch_size=None)


class _Stream(torch.utils.data.IterableDataset[Batch]):
    def __init__(self, start: Callable[[], Iterator[Batch]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[Batch]:
        return self._start()


@lru_cache
def _text(length: int, count: int = 1024) -> Tensor:
    """Windows of the bytes of Python's reference manual, shape ``(count, length)``."""
    manual = "\n".join(topics[name] for name in sorted(topics)).encode()[: count * length]
    return torch.tensor(list(manual)).reshape(-1, length)


@lru_cache
def _masked(length: int) -> tuple[Tensor, Tensor]:
    """The same with 15 % of the bytes masked, and these bytes as labels."""
    text = _text(length)
    is_masked = torch.rand(text.shape, generator=torch.Generator().manual_seed(1)) < 0.15
    return text.masked_fill(is_masked, MASK), text.masked_fill(~is_masked, IGNORED)


@lru_cache
def _images(size: int) -> tuple[Tensor, Tensor]:
    """1797 digits in three equal channels, standardised and enlarged, and their labels."""
    bunch = load_digits()
    images = torch.as_tensor(bunch.images, dtype=torch.float32)
    images = (images - images.mean()) / images.std()
    large = F.interpolate(images[:, None], size=(size, size), mode="bilinear")
    return large.expand(-1, 3, -1, -1).contiguous(), torch.as_tensor(bunch.target)


@lru_cache
def _melodies(seconds: float, notes: int, count: int = 256) -> tuple[Tensor, Tensor]:
    """Standardised waveforms of ``notes`` sines with overtones in a row, and the pitches (1 to 16) in their order."""
    generator = torch.Generator().manual_seed(2)
    pitches = torch.randint(NUM_PITCHES, (count, notes), generator=generator)
    frequencies = 220 * 2 ** (pitches / 6)
    samples = int(seconds * SAMPLE_RATE) // notes
    clock = torch.arange(samples) / SAMPLE_RATE
    phases = 2 * math.pi * frequencies[..., None] * clock
    tones = (phases.sin() + 0.5 * (2 * phases).sin()) * torch.hann_window(samples)
    waves = tones.flatten(1) + 0.01 * torch.randn(count, samples * notes, generator=generator)
    return (waves - waves.mean()) / waves.std(), pitches + 1


def _spectrogram(waves: Tensor, bins: int, frames: int) -> Tensor:
    """Log-magnitude spectra as Whisper scales them, shape ``(count, bins, frames)``."""
    spectra = torch.stft(waves, 400, waves.shape[1] // frames, window=torch.hann_window(400), return_complex=True)
    logs = spectra[:, :bins, :frames].abs().clamp(min=1e-5).log10()
    return (logs.clamp(min=float(logs.max()) - 4) + 2) / 2


def language(length: int = 48, size: int = 8) -> DataLoader[Any]:
    """Text whose next byte is to be predicted; the models shift the labels themselves."""
    return _serve({"input_ids": _text(length), "labels": _text(length)}, size)


def masked_language(length: int = 64, size: int = 8) -> DataLoader[Any]:
    """Text whose masked bytes are to be restored."""
    text, labels = _masked(length)
    return _serve({"input_ids": text, "labels": labels}, size)


def restoration(length: int = 48, size: int = 8) -> DataLoader[Any]:
    """Masked text, from which a decoder is to write the whole."""
    return _serve({"input_ids": _masked(length)[0], "labels": _text(length)}, size)


def pictures(size: int = 32, batch: int = 16) -> DataLoader[Any]:
    """Digits to classify."""
    images, labels = _images(size)
    return _serve({"pixel_values": images, "labels": labels}, batch)


def bare_pictures(size: int = 32, batch: int = 16) -> DataLoader[Any]:
    """Digits without labels."""
    return _serve({"pixel_values": _images(size)[0]}, batch)


def captions(size: int = 32, batch: int = 16) -> DataLoader[Any]:
    """Digits with the number's name in bytes, to be told apart by contrast."""
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    words = torch.tensor([[*f"a {name}".ljust(8).encode(), MASK] for name in names])
    images, labels = _images(size)
    return _serve({"pixel_values": images, "input_ids": words[labels]}, batch)


def speech_features(size: int = 8) -> DataLoader[Any]:
    """Spectrograms of melodies, from which a decoder is to write the pitches."""
    waves, pitches = _melodies(1.0, 12)
    return _serve({"input_features": _spectrogram(waves, 80, 100), "labels": pitches}, size)


def speech(size: int = 4) -> DataLoader[Any]:
    """Waveforms of melodies, for CTC."""
    waves, pitches = _melodies(1.0, 6)
    return _serve({"input_values": waves, "labels": pitches}, size)


# --- networks --------------------------------------------------------------------------------------------------------


def _hugging_face(kind: str, configuration: str, **settings: Any) -> nn.Module:
    library = import_module("transformers")
    model = getattr(library, kind)(getattr(library, configuration)(**settings))
    assert isinstance(model, nn.Module)
    return model


class TorchTransformer(nn.Module):
    """torch's own encoder-decoder (normalising after each block, its default) with embeddings and a head."""

    def __init__(self, width: int = 96, depth: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(512, width)
        self.core = nn.Transformer(width, 4, depth, depth, 4 * width, batch_first=True)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor) -> SimpleNamespace:
        """The loss of writing ``labels`` after reading ``input_ids``."""
        shifted = F.pad(labels[:, :-1], (1, 0), value=START)
        mask = nn.Transformer.generate_square_subsequent_mask(shifted.shape[1])
        decoded = self.core(self._embed(input_ids), self._embed(shifted), tgt_mask=mask)
        return SimpleNamespace(loss=F.cross_entropy(self.head(decoded).flatten(0, 1), labels.flatten()))

    def _embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(tokens) + self.places(torch.arange(tokens.shape[1]))
        return embedded


@dataclass(frozen=True)
class Architecture:
    """A network, what it trains on, and how.

    Attributes:
        build: Makes the network at its default initialisation; its output has a ``loss``.
        data: Makes the batches: keyword arguments of the network.
        warm_up: Whether the learning rate rises linearly over the first ten steps, as in the architecture's paper.
        package: The package that it needs.
        expected: Kinds of alerts that are right: the network does not train as its package initialises it.
    """

    build: Callable[[], nn.Module]
    data: Callable[[], DataLoader[Any]]
    warm_up: bool = True
    package: str = "transformers"
    expected: tuple[str, ...] = ()


def _of(
    kind: str, data: Callable[[], DataLoader[Any]], warm_up: bool = True, config: str = "", **settings: Any
) -> Architecture:
    stem = re.split("For(?=[A-Z])", kind)[0].removesuffix("LMHeadModel").removesuffix("Model")
    return Architecture(lambda: _hugging_face(kind, config or f"{stem}Config", **settings), data, warm_up)


_WIDE: dict[str, Any] = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 384}
_DEEP: dict[str, Any] = {**_WIDE, "num_hidden_layers": 12}
_BYTES: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": 128}
_ENDS: dict[str, Any] = {"bos_token_id": START, "eos_token_id": 258, "pad_token_id": 259}
_TEXT: dict[str, Any] = {**_DEEP, **_BYTES, **_ENDS}
_SEQ2SEQ: dict[str, Any] = {
    "d_model": 96,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 384,
    "decoder_ffn_dim": 384,
    "decoder_start_token_id": START,
    **_ENDS,
}
_IMAGE: dict[str, Any] = {"image_size": 32, "patch_size": 4, "num_labels": 10}
_CLASSES: dict[str, Any] = {"num_labels": 10}
_AUDIO: dict[str, Any] = {**_DEEP, "conv_dim": (48,) * 7, "vocab_size": NUM_PITCHES + 1, "pad_token_id": 0}
_AUDIO |= {"ctc_loss_reduction": "mean", "num_conv_pos_embeddings": 32, "num_conv_pos_embedding_groups": 8}
_RESNET: dict[str, Any] = {"embedding_size": 32, **_CLASSES}

ARCHITECTURES: dict[str, Architecture] = {
    # Convolutional networks.
    "resnet-18": _of(
        "ResNetForImageClassification", pictures, False, layer_type="basic", depths=[2, 2, 2, 2],
        hidden_sizes=[32, 64, 128, 256], **_RESNET,
    ),
    "resnet-50": _of(
        "ResNetForImageClassification", lambda: pictures(48), False, layer_type="bottleneck", depths=[3, 4, 6, 3],
        hidden_sizes=[64, 128, 256, 512], **_RESNET,
    ),
    "regnet": _of(
        "RegNetForImageClassification", pictures, False, embedding_size=16, hidden_sizes=[24, 56, 152, 368],
        depths=[2, 2, 4, 7], groups_width=8, layer_type="y", **_CLASSES,
    ),
    # Every weight starts at N(0, 0.02), under which BatchNorm's eps of 1e-3 outweighs the variance: the gradient loses
    # two decades per block, and the loss stays at log(10) for good.
    "efficientnet-b0": replace(
        _of(
            "EfficientNetForImageClassification", lambda: pictures(64, 8), False, image_size=64,
            width_coefficient=0.5, depth_coefficient=1.0, hidden_dim=640, **_CLASSES,
        ),
        expected=("vanishing", "stalled"),
    ),
    "mobilenet-v2": _of(
        "MobileNetV2ForImageClassification", lambda: pictures(64, 8), False, image_size=64, depth_multiplier=0.5,
        **_CLASSES,
    ),
    "convnext": _of(
        "ConvNextForImageClassification", pictures, depths=[3, 3, 9, 3], hidden_sizes=[24, 48, 96, 192], **_CLASSES
    ),
    # Vision transformers and mixers.
    "vit": _of("ViTForImageClassification", lambda: pictures(32, 8), **_DEEP, **_IMAGE),
    "swin": _of(
        "SwinForImageClassification", lambda: pictures(128, 4), image_size=128, embed_dim=24, depths=[2, 2, 6, 2],
        num_heads=[1, 2, 4, 8], window_size=4, **_CLASSES,
    ),
    "beit": _of("BeitForImageClassification", lambda: pictures(32, 8), **_DEEP, **_IMAGE),
    "dinov2": _of("Dinov2ForImageClassification", lambda: pictures(32, 8), **_DEEP, **_IMAGE),
    "poolformer": _of(
        "PoolFormerForImageClassification", lambda: pictures(64, 8), depths=[2, 2, 6, 2],
        hidden_sizes=[24, 48, 96, 192], **_CLASSES,
    ),
    "vit-mae": _of(
        "ViTMAEForPreTraining", bare_pictures, **_DEEP, image_size=32, patch_size=4, decoder_hidden_size=48,
        decoder_num_hidden_layers=8, decoder_num_attention_heads=4, decoder_intermediate_size=192,
    ),
    "clip": _of(
        "CLIPModel", captions,
        text_config={**_WIDE, **_BYTES, **_ENDS, "num_hidden_layers": 12, "eos_token_id": MASK},
        vision_config={**_DEEP, "image_size": 32, "patch_size": 8}, projection_dim=96,
    ),
    # Encoders of text.
    "bert": _of("BertForMaskedLM", masked_language, **_TEXT),
    "distilbert": _of(
        "DistilBertForMaskedLM", masked_language, dim=96, n_heads=4, n_layers=6, hidden_dim=384, **_BYTES,
        pad_token_id=259,
    ),
    "albert": _of("AlbertForMaskedLM", masked_language, embedding_size=48, **_TEXT),
    "deberta-v2": _of("DebertaV2ForMaskedLM", masked_language, relative_attention=True,
                      pos_att_type=["p2c", "c2p"], **_DEEP, **_BYTES, pad_token_id=259),
    # Decoders of text.
    "gpt-2": _of("GPT2LMHeadModel", language, n_embd=96, n_head=4, n_layer=12, n_positions=128,
                 vocab_size=VOCABULARY, bos_token_id=START, eos_token_id=258),
    "gpt-neox": _of("GPTNeoXForCausalLM", language, **_TEXT),
    "llama": _of("LlamaForCausalLM", language, num_key_value_heads=2, **_TEXT),
    "gemma-2": _of("Gemma2ForCausalLM", language, num_key_value_heads=2, head_dim=24, sliding_window=32, **_TEXT),
    "mixtral": _of(
        "MixtralForCausalLM", language, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
        output_router_logits=True, **{**_TEXT, "intermediate_size": 192},
    ),
    "mamba": _of("MambaForCausalLM", lambda: language(32), hidden_size=64, num_hidden_layers=12,
                 vocab_size=VOCABULARY, **_ENDS),
    "rwkv": _of("RwkvForCausalLM", lambda: language(32), hidden_size=64, num_hidden_layers=12,
                vocab_size=VOCABULARY, context_length=64, bos_token_id=START, eos_token_id=258),
    # Encoder-decoders.
    "t5": _of(
        "T5ForConditionalGeneration", restoration, d_model=96, d_kv=24, d_ff=384, num_layers=6, num_heads=4,
        vocab_size=VOCABULARY, decoder_start_token_id=START, eos_token_id=258, pad_token_id=259,
    ),
    "bart": _of("BartForConditionalGeneration", restoration, **_SEQ2SEQ, **_BYTES, forced_eos_token_id=258),
    "torch-transformer": Architecture(TorchTransformer, restoration, package="torch"),
    # Speech.
    "whisper": _of(
        "WhisperForConditionalGeneration", speech_features, num_mel_bins=80, max_source_positions=50,
        max_target_positions=32, vocab_size=VOCABULARY, **_SEQ2SEQ, suppress_tokens=None,
        begin_suppress_tokens=None,
    ),
    "wav2vec2": _of("Wav2Vec2ForCTC", speech, **_AUDIO),
    "hubert": _of("HubertForCTC", speech, **_AUDIO),
}  # fmt: skip


# --- runs ------------------------------------------------------------------------------------------------------------


class Task(LightningModule):
    """Any network whose output has a loss, with AdamW.

    Args:
        network: The network.
        warm_up: Whether the learning rate rises linearly over the first ten steps.
    """

    def __init__(self, network: nn.Module, warm_up: bool) -> None:
        super().__init__()
        self.network = network
        self._warm_up = warm_up

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of the network's output."""
        extra = {"return_loss": True} if "Clip" in type(self.network).__name__.title() else {}
        loss = self.network(**batch, **extra).loss
        assert isinstance(loss, Tensor)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW at 3e-4."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE)
        steps = WARM_UP_STEPS if self._warm_up else 1
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Memory(Logger):
    """Keeps what GradWatch publishes."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, list[float]] = {}

    @property
    def name(self) -> str:
        """No name is needed."""
        return "memory"

    @property
    def version(self) -> int:
        """Nor a version."""
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append every number to those of the same name."""
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append(float(value))

    def largest(self, name: str) -> float:
        """The largest of a number's values, without the zeros that stand for "not known yet"; 0 if there are none."""
        return max((value for value in self.metrics.get(name, ()) if value != 0), default=0.0)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """There are none."""


class Recorder(Callback):
    """Keeps the losses, and the depth profile at the first alert; belongs behind ``GradWatch``.

    Args:
        watch: Where the alerts are.
    """

    def __init__(self, watch: GradWatch) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.profile: dict[str, float] = {}
        self._watch = watch

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at what has changed."""
        self.losses.append(float(outputs["loss"]))
        if self._watch.alerts and not self.profile:
            self.profile = self._watch.profile


@dataclass
class Run:
    """What came of an architecture.

    Attributes:
        layers: Number of modules that own parameters.
        parameters: Number of weights.
        lost: Most decades that the gradient lost towards the input, by GradWatch's own score; negative if it grew.
        growth: Most decades by which it grew.
        losses: The loss of every step.
        alerts: Every alert that is not expected: kind, cause, step and message.
        expected: Those that are.
        troubles: Warnings of GradWatch that are no alerts: it has failed somewhere.
        profile: The depth profile at the first alert, without one the last of the run.
        seconds: Duration of the training.
    """

    layers: int
    parameters: int
    lost: float
    growth: float
    losses: list[float]
    alerts: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    profile: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def run(architecture: Architecture, steps: int, seed: int) -> Run:
    """Train an architecture under ``GradWatch()``."""
    seed_everything(seed, verbose=False)
    task = Task(architecture.build().train(), architecture.warm_up)
    watch, memory = GradWatch(), Memory()
    recorder = Recorder(watch)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=[watch, recorder],
        logger=memory,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = architecture.data()
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(task, data)
    seconds = time.perf_counter() - start
    own = [str(w.message) for w in caught if issubclass(w.category, GradWatchWarning)]
    return Run(
        layers=sum(next(m.parameters(recurse=False), None) is not None for m in task.modules()),
        parameters=sum(p.numel() for p in task.parameters()),
        lost=memory.largest("gradwatch/decades_lost"),
        growth=memory.largest("gradwatch/exploding"),
        losses=recorder.losses,
        alerts=[_tell(alert) for alert in watch.alerts if alert.kind not in architecture.expected],
        expected=[_tell(alert) for alert in watch.alerts if alert.kind in architecture.expected],
        troubles=[message for message in own if not any(a.message in message for a in watch.alerts)],
        profile=recorder.profile or watch.profile,
        seconds=seconds,
    )


def _tell(alert: Alert) -> str:
    return f"{alert.kind} ({alert.cause}) at step {alert.step}: {alert.message}"


def draw(profile: dict[str, float]) -> str:
    """A depth profile in decades, with bars, a line per layer, the input end first."""
    if len(profile) < MIN_PROFILE:
        return "  (too few layers for a profile)"
    pairs = [(math.log10(norm), name) for name, norm in profile.items()]
    lowest, highest = min(pairs)[0], max(pairs)[0]
    per_decade = min(10.0, WIDEST_BAR / max(highest - lowest, 1.0))
    return "\n".join(f"  {log:7.2f} {'#' * round(per_decade * (log - lowest))} {name}" for log, name in pairs)


def row(name: str, result: Run) -> str:
    """A line of the table."""
    few = min(5, len(result.losses))
    first, last = (statistics.median(part) for part in (result.losses[:few], result.losses[-few:]))
    said = "; ".join(alert.split(":")[0] for alert in result.alerts) or "none"
    said += "".join(f"; expected: {alert.split(':')[0]}" for alert in result.expected)
    said += f"; {len(result.troubles)} FAILURES OF GRADWATCH" if result.troubles else ""
    return (
        f"{name:18} {result.layers:6} {result.parameters:10,} {result.lost:12.2f} {result.growth:6.2f} "
        f"{first:8.3g} -> {last:<8.3g} {result.seconds:7.1f}  {said}"
    )


def main(names: list[str], steps: int, seed: int, with_profile: bool) -> int:
    """Run the named architectures (by default all) and print a table."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for space in ("lightning.pytorch", "pytorch_lightning"):  # either may be the one that speaks
        for logger in (space, f"{space}.utilities.rank_zero", "transformers"):
            logging.getLogger(logger).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print(
        f"{'architecture':18} {'layers':>6} {'parameters':>10} {'decades_lost':>12} {'growth':>6} "
        f"{'loss':>8}    {'':8} {'seconds':>7}  alerts"
    )
    runs: dict[str, Run] = {}
    for name in names:
        architecture = ARCHITECTURES[name]
        if find_spec(architecture.package) is None:
            print(f"{name:18} skipped: the package {architecture.package} is not installed", flush=True)
            continue
        result = runs[name] = run(architecture, steps, seed)
        print(row(name, result), flush=True)
        for message in (*result.alerts, *result.troubles):
            print(f"  {message}")
        if result.alerts or with_profile:
            print(draw(result.profile), flush=True)
    loud = [name for name, result in runs.items() if result.alerts or result.troubles]
    seconds = sum(result.seconds for result in runs.values())
    print(f"{len(runs)} of {len(names)} architectures ran in {seconds:.0f} s, {len(loud)} with alerts or failures")
    return int(bool(loud) or not runs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(ARCHITECTURES), metavar="NAME", help="by default all")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", action="store_true", help="print the last depth profile of every network")
    arguments = parser.parse_args()
    chosen = arguments.only or list(ARCHITECTURES)
    sys.exit(main(chosen, arguments.steps, arguments.seed, arguments.profile))
