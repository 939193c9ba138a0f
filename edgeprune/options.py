"""What each command can be told: one frozen dataclass a command, one field an option.

The command line, TOML files, the saved config and the Python API all derive from these fields, so an option is
written once: name, type, default and help. Standard library only: `--help` is built from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def option(
    default: Any, help: str, *, panel: str = "Options", flags: tuple[str, ...] = (), metavar: str = ""
) -> Any:
    """A field with its help. `flags` replaces the flag derived from the name; `panel` groups it in `--help`."""
    meta = {"help": help, "panel": panel, "flags": flags, "metavar": metavar}
    return field(default=default, metadata=meta)


def argument(help: str, *, default: Any = None, required: bool = True) -> Any:
    """A positional field."""
    meta = {"help": help, "argument": True, "required": required}
    return field(default=default, metadata=meta)


MODEL = "Model"
_DATA = "Images"
RUN = "Run"


@dataclass(frozen=True)
class RunOptions:
    """Options that every working command has."""

    output: Path | None = option(None, "Run folder to write.", flags=("--output", "-o"), panel=RUN)
    force: bool = option(False, "Replace an output that exists.", panel=RUN)
    resume: bool = option(False, "Go on with an interrupted run in the same folder.", panel=RUN)
    dry_run: bool = option(False, "Check model, data and budget, print the plan, and stop.", panel=RUN)
    seed: int = option(0, "Seed of everything random; recorded.", panel=RUN)
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", panel=RUN)
    threads: int = option(0, "CPU threads; 0 takes all cores.", panel=RUN)
    cache: Path | None = option(
        None, "Folder of the decoded-image cache; the user's cache folder by default.", panel=RUN
    )


@dataclass(frozen=True)
class ModelOptions:
    """Options that say which network and how images enter it."""

    weights: str | None = option(
        None, "Weights: a safetensors file or a state dict; 'none' is random.", panel=MODEL
    )
    classes: str | None = option(None, "Number of classes, or a file with one name a line.", panel=MODEL)
    map_by_order: bool = option(
        False, "Take weights whose shapes agree in order; the pairs are listed.", panel=MODEL
    )
    offline: bool = option(False, "Never fetch weights.", panel=MODEL)
    trust: tuple[str, ...] = option(
        (), "A factory ('module:function') that a checkpoint may import.", panel=MODEL
    )
    size: int | None = option(None, "Input height and width in pixels.", panel=MODEL)
    mean: str | None = option(None, "Mean per channel, of pixels in 0..1: '0.5,0.5,0.5'.", panel=MODEL)
    std: str | None = option(None, "Standard deviation per channel: '0.5,0.5,0.5'.", panel=MODEL)
    interpolation: str | None = option(None, "bilinear, bicubic or nearest.", panel=MODEL)


@dataclass(frozen=True)
class DataOptions:
    """Options that say which images."""

    target: Path | None = option(
        None, "Unlabelled images: a folder, a zip, a .txt list or a video.", panel=_DATA
    )
    source: Path | None = option(None, "Labelled source images: a folder or a zip; optional.", panel=_DATA)
    evaluate: Path | None = option(None, "Labelled images, used only to print accuracy.", panel=_DATA)


_LEARN = "Training"


@dataclass(frozen=True)
class TrainingOptions:
    """Options that say how the one training loop works."""

    optimizer: str = option("adamw", "adamw, or sgd with Nesterov momentum 0.9.", panel=_LEARN)
    decay: str = option("cosine", "How the learning rate falls: cosine or inverse.", panel=_LEARN)
    accumulate: int = option(1, "Batches whose mean gradient makes one step.", panel=_LEARN)
    amp: str = option("none", "Mixed precision: none, bf16 or fp16.", panel=_LEARN)
    compile: bool = option(False, "torch.compile the network; pays in long runs on a GPU.", panel=_LEARN)


@dataclass(frozen=True)
class AdaptOptions(TrainingOptions, DataOptions, ModelOptions, RunOptions):
    """Fit a network to unlabelled target images."""

    model: str = argument(
        "torchvision:NAME, timm:NAME, package.module:factory, a run folder or a checkpoint.", default=""
    )
    objective: str = option(
        "auto", "What is learned from the target; 'auto' takes source images when given.", panel=_LEARN
    )
    steps: int = option(300, "Optimiser steps of the adaptation.", panel=_LEARN)
    source_steps: int | None = option(
        None, "Steps on source alone before; default: as many when the head is new, else 0.", panel=_LEARN
    )
    batch: int = option(32, "Images of each domain in a step.", panel=_LEARN)
    lr: float | None = option(
        None, "Peak learning rate; 5e-4, or 1e-4 where 'auto' finds the shift small.", panel=_LEARN
    )
    weight_decay: float = option(5e-4, "Weight decay.", panel=_LEARN)
    ema: float = option(0.98, "Keep an average of the weights with this decay; 0 keeps none.", panel=_LEARN)
    flip: bool = option(True, "Mirror images at random; not for digits or letters.", panel=_LEARN)
    crop: float | None = option(
        None,
        "Least share of the area that a random crop keeps (its aspect varies by a third); 0.7, or 1 up to 64 pixels.",
        panel=_LEARN,
    )
    set: tuple[str, ...] = option(
        (), "A knob of the objective: name=value; repeatable; 'help' lists them.", panel=_LEARN
    )
    pretrained: Path | None = option(
        None,
        "Weights before fine-tuning, such as ImageNet's: 'auto' seeks similar images in their features too.",
        panel=_LEARN,
    )
    select: str = option(
        "information",
        "Validator that chooses the checkpoint: information, entropy, nuclear, snd, mixval, ami, rank; dev, source.",
        panel=_LEARN,
    )
    hold_out: float = option(
        0.0, "Share of the source kept from training, for accuracy estimates; dev and source.", panel=_LEARN
    )
    stats: Path | None = option(
        None, "Statistics that the cloud exported, for an accuracy estimate.", panel=_DATA
    )
    export_stats: Path | None = option(
        None, "Write the model's statistics on labelled --source images to this file, and stop.", panel=_DATA
    )
    drop_absent_classes: bool = option(
        False, "Remove from the classifier the classes that the target lacks.", panel=_LEARN
    )


_BUDGET = "Budget (what is kept)"


@dataclass(frozen=True)
class PruneOptions(TrainingOptions, DataOptions, ModelOptions, RunOptions):
    """Remove the channels that the target images do not need, and recover on them."""

    model: str = argument("A run folder, a checkpoint, or a model as for adapt.", default="")
    labelled_target: Path | None = option(
        None,
        "A few labelled target images to learn from, one folder a class; for --method tana.",
        panel=_DATA,
    )
    macs: str | None = option(None, "MACs to keep: a fraction (0.4), or absolute (120M).", panel=_BUDGET)
    params: str | None = option(None, "Parameters to keep: a fraction, or absolute (1.2M).", panel=_BUDGET)
    channels: str | None = option(None, "Channels inside blocks to keep: a fraction.", panel=_BUDGET)
    latency: str | None = option(
        None, "Latency to keep: a share of the dense network's (0.7x), or 2.0ms.", panel=_BUDGET
    )
    table: Path | None = option(
        None, "Layer table of the device; made here with ONNX Runtime if not given.", panel=_BUDGET
    )
    multiple: int | None = option(
        None, "Widths are multiples of this; 8, and 32 with --for int8.", panel=_BUDGET
    )
    precision: str = option(
        "fp32", "What it will run in: fp32, fp16 or int8 (widths of 32).", flags=("--for",), panel=_BUDGET
    )
    floor: float = option(0.1, "No layer keeps less than this fraction of its channels.", panel=_BUDGET)
    method: str = option("auto", "The way from a cloud model to a slim one.", panel=_LEARN)
    then: str | None = option(
        None, "Afterwards, within the same budget: 'dalr' makes layers low-rank.", panel=_LEARN
    )
    then_share: float = option(
        0.5,
        "How far along the way to the budget, and of the passes, --method goes before --then.",
        panel=_LEARN,
    )
    score: str = option("measured", "How channels are ranked.", panel=_LEARN)
    rank: str = option(
        "global",
        "Over what channels compete: global (damage for budget saved), threshold, isomorphic or local.",
        panel=_LEARN,
    )
    iterations: int | None = option(
        None,
        "In how many cuts the budget is reached; the method's own number.",
        flags=("--steps",),
        panel=_LEARN,
    )
    schedule: str | None = option(
        None, "How cuts are spread: linear, exponential or cubic; the method's own.", panel=_LEARN
    )
    objective: str = option("none", "An adaptation objective that goes on while recovering.", panel=_LEARN)
    pretrained: Path | None = option(
        None, "Weights before fine-tuning, as for adapt; where 'auto' adapts on.", panel=_LEARN
    )
    recover: float = option(3.0, "Passes over the target images after the first cut, in all.", panel=_LEARN)
    between: float = option(0.5, "Of these, passes after each cut but the last.", panel=_LEARN)
    batch: int = option(32, "Images in a step.", panel=_LEARN)
    lr: float | None = option(
        None,
        "Peak learning rate of the recovery; 1e-3, or 3e-4 where batch-norm keeps statistics of its own.",
        panel=_LEARN,
    )
    weight_decay: float = option(5e-4, "Weight decay.", panel=_LEARN)
    ema: float = option(0.0, "Keep an average of the weights with this decay; 0 keeps none.", panel=_LEARN)
    flip: bool = option(True, "Mirror images at random; not for digits or letters.", panel=_LEARN)
    crop: float | None = option(
        None,
        "Least share of the area that a random crop keeps (its aspect varies by a third); 0.7, or 1 up to 64 pixels.",
        panel=_LEARN,
    )
    bn_recal: bool = option(
        True,
        "Re-estimate batch-norm on target images after each cut; what learns on the target does so in any case.",
        panel=_LEARN,
    )
    keep: tuple[str, ...] = option((), "Layers that stay as they are (a glob); repeatable.", panel=_LEARN)
    keep_out: tuple[str, ...] = option(
        (), "Layers whose output channels stay (a glob); repeatable.", panel=_LEARN
    )
    keep_in: tuple[str, ...] = option(
        (), "Layers whose input channels stay (a glob); repeatable.", panel=_LEARN
    )
    plan: Path | None = option(None, "Apply this plan instead of making one.", panel=_LEARN)
    set: tuple[str, ...] = option(
        (),
        "A knob of the method: name=value; of --objective or --score: objective.name=value, score.name=value; "
        "'help' lists the method's.",
        panel=_LEARN,
    )

    @property
    def width_multiple(self) -> int:
        """What widths are multiples of: tensor cores take int8 channels in runs of 32."""
        return self.multiple or (32 if self.precision == "int8" else 8)
