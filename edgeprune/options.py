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


_MODEL = "Model"
_DATA = "Images"
_RUN = "Run"


@dataclass(frozen=True)
class RunOptions:
    """Options that every working command has."""

    output: Path | None = option(None, "Run folder to write.", flags=("--output", "-o"), panel=_RUN)
    force: bool = option(False, "Replace an output that exists.", panel=_RUN)
    resume: bool = option(False, "Go on with an interrupted run in the same folder.", panel=_RUN)
    dry_run: bool = option(False, "Check model, data and budget, print the plan, and stop.", panel=_RUN)
    seed: int = option(0, "Seed of everything random; recorded.", panel=_RUN)
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", panel=_RUN)
    threads: int = option(0, "CPU threads; 0 takes all cores.", panel=_RUN)
    cache: Path | None = option(
        None, "Folder of the decoded-image cache; the user's cache folder by default.", panel=_RUN
    )


@dataclass(frozen=True)
class ModelOptions:
    """Options that say which network and how images enter it."""

    weights: str | None = option(
        None, "Weights: a safetensors file or a state dict; 'none' is random.", panel=_MODEL
    )
    classes: str | None = option(None, "Number of classes, or a file with one name a line.", panel=_MODEL)
    map_by_order: bool = option(
        False, "Take weights whose shapes agree in order; the pairs are listed.", panel=_MODEL
    )
    offline: bool = option(False, "Never fetch weights.", panel=_MODEL)
    trust: tuple[str, ...] = option(
        (), "A factory ('module:function') that a checkpoint may import.", panel=_MODEL
    )
    size: int | None = option(None, "Input height and width in pixels.", panel=_MODEL)
    mean: str | None = option(None, "Mean per channel, of pixels in 0..1: '0.5,0.5,0.5'.", panel=_MODEL)
    std: str | None = option(None, "Standard deviation per channel: '0.5,0.5,0.5'.", panel=_MODEL)
    interpolation: str | None = option(None, "bilinear, bicubic or nearest.", panel=_MODEL)


@dataclass(frozen=True)
class DataOptions:
    """Options that say which images."""

    target: Path | None = option(None, "Unlabelled target images: a folder, a zip, a .txt list or a video.", panel=_DATA)
    source: Path | None = option(None, "Labelled source images: a folder or a zip; optional.", panel=_DATA)
    evaluate: Path | None = option(None, "Labelled images, used only to print accuracy.", panel=_DATA)


_LEARN = "Training"


@dataclass(frozen=True)
class AdaptOptions(DataOptions, ModelOptions, RunOptions):
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
    lr: float = option(5e-4, "Peak learning rate (AdamW, cosine).", panel=_LEARN)
    weight_decay: float = option(5e-4, "Weight decay.", panel=_LEARN)
    ema: float = option(0.0, "Keep an average of the weights with this decay; 0 keeps none.", panel=_LEARN)
    flip: bool = option(True, "Mirror images at random; not for digits or letters.", panel=_LEARN)
    crop: float | None = option(
        None, "Least share that a random crop keeps; 0.7, or 1 up to 64 pixels.", panel=_LEARN
    )
    set: tuple[str, ...] = option((), "A knob of the objective: name=value; repeatable.", panel=_LEARN)
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
class PruneOptions(DataOptions, ModelOptions, RunOptions):
    """Remove the channels that the target images do not need, and recover on them."""

    model: str = argument("A run folder, a checkpoint, or a model as for adapt.", default="")
    macs: str | None = option(None, "MACs to keep: a fraction (0.4), or absolute (120M).", panel=_BUDGET)
    params: str | None = option(None, "Parameters to keep: a fraction, or absolute (1.2M).", panel=_BUDGET)
    channels: str | None = option(None, "Channels inside blocks to keep: a fraction.", panel=_BUDGET)
    latency: str | None = option(
        None, "Latency to keep: a share of the dense network's (0.7x), or 2.0ms.", panel=_BUDGET
    )
    table: Path | None = option(
        None, "Layer table of the device; made here with ONNX Runtime if not given.", panel=_BUDGET
    )
    multiple: int = option(8, "Widths are multiples of this.", panel=_BUDGET)
    precision: str = option(
        "fp32", "What it will run in: fp32, fp16 or int8 (widths of 32).", flags=("--for",), panel=_BUDGET
    )
    floor: float = option(0.1, "No layer keeps less than this fraction of its channels.", panel=_BUDGET)
    method: str = option("auto", "The way from a cloud model to a slim one.", panel=_LEARN)
    score: str = option("taylor", "How channels are ranked.", panel=_LEARN)
    rank: str = option(
        "global",
        "Over what channels compete: global (score lost for budget saved), threshold, isomorphic or local.",
        panel=_LEARN,
    )
    iterations: int = option(1, "In how many cuts the budget is reached.", flags=("--steps",), panel=_LEARN)
    schedule: str = option("cubic", "How cuts are spread: linear, exponential or cubic.", panel=_LEARN)
    objective: str = option("none", "An adaptation objective that goes on while recovering.", panel=_LEARN)
    recover: float = option(3.0, "Passes over the target images after the last cut.", panel=_LEARN)
    between: float = option(0.5, "Passes over the target images after each earlier cut.", panel=_LEARN)
    batch: int = option(32, "Images in a step.", panel=_LEARN)
    lr: float = option(1e-3, "Peak learning rate of the recovery.", panel=_LEARN)
    weight_decay: float = option(5e-4, "Weight decay.", panel=_LEARN)
    ema: float = option(0.0, "Keep an average of the weights with this decay; 0 keeps none.", panel=_LEARN)
    flip: bool = option(True, "Mirror images at random; not for digits or letters.", panel=_LEARN)
    crop: float | None = option(
        None, "Least share that a random crop keeps; 0.7, or 1 up to 64 pixels.", panel=_LEARN
    )
    bn_recal: bool = option(True, "Re-estimate batch-norm on target images after each cut.", panel=_LEARN)
    keep: tuple[str, ...] = option((), "Layers that stay as they are (a glob); repeatable.", panel=_LEARN)
    keep_out: tuple[str, ...] = option(
        (), "Layers whose output channels stay (a glob); repeatable.", panel=_LEARN
    )
    keep_in: tuple[str, ...] = option(
        (), "Layers whose input channels stay (a glob); repeatable.", panel=_LEARN
    )
    plan: Path | None = option(None, "Apply this plan instead of making one.", panel=_LEARN)
    set: tuple[str, ...] = option((), "A knob of the method: name=value; repeatable.", panel=_LEARN)


@dataclass(frozen=True)
class ExportOptions(RunOptions):
    """Turn a checkpoint into ONNX, proved equal on the user's images."""

    model: str = argument("A run folder, a checkpoint, or an ONNX file in float32 (no torch).", default="")
    to: tuple[str, ...] = option(
        ("onnx",), "What to make: onnx, tensorrt or tensorrt-rtx; repeatable.", panel="Export"
    )
    precision: tuple[str, ...] = option(
        ("fp32",),
        "fp32, fp16 or int8; the last two are made from fp32 and proved; repeatable.",
        panel="Export",
    )
    batch: str = option("1", "Batch: 1, or 1:8:32 for a dynamic one (min:best:max).", panel="Export")
    calibration: str = option(
        "auto", "int8 ranges: minmax, entropy or percentile; auto takes the most equal.", panel="Export"
    )
    compute_capability: str | None = option(
        None, "tensorrt-rtx: GPUs to build for, no GPU needed: '8.6,8.9,12.0'.", panel="Engine"
    )
    embed_preprocess: bool = option(
        False, "Also write NAME.e2e.onnx, which takes uint8 pixels and normalises them itself.", panel="Ends"
    )
    layout: str = option("nhwc", "--embed-preprocess: nhwc or nchw.", panel="Ends")
    softmax: bool = option(False, "Also write NAME.e2e.onnx, which gives probabilities.", panel="Ends")
    top_k: int = option(
        0, "Also write NAME.e2e.onnx, which gives the K likeliest classes; implies --softmax.", panel="Ends"
    )
    simplify: bool = option(False, "Let onnxslim simplify the graph; proved like any other.", panel="Export")
    bundle: Path | None = option(
        None,
        "Write a folder for the device: ONNX in each precision, example, scripts, checksums.",
        panel="Export",
    )
    workspace: int = option(2048, "Memory that an engine's layers may use, in MiB.", panel="Engine")
    optimization_level: int | None = option(
        None, "How long TensorRT searches, 0 to 5; its own choice by default.", panel="Engine"
    )
    timing_cache: Path | None = option(
        None, "tensorrt: folder of timing caches, one a release and GPU; made when missing.", panel="Engine"
    )
    version_compatible: bool = option(
        False, "tensorrt: an engine that later releases load too.", panel="Engine"
    )
    hardware_compatible: str | None = option(
        None, "tensorrt: ampere+ or same-capability: other GPUs may load it.", panel="Engine"
    )
    dla: int | None = option(
        None, "tensorrt on a Jetson: the DLA core to run on; what it cannot takes the GPU.", panel="Engine"
    )
    opset: int = option(20, "ONNX opset; 20 is what TensorRT 10 and 11 both take.", panel="Export")
    layers: bool = option(
        False, "Write the layers at many widths instead, for bench --layer-table.", panel="Export"
    )
    images: Path | None = option(
        None,
        "Images that int8 is calibrated and parity proved on; the run's target images by default.",
        panel="Parity",
    )
    evaluate: Path | None = option(None, "Labelled images, used only to print accuracy.", panel="Parity")
    max_flip: float | None = option(
        None, "Largest share of top-1 answers that may change; 0 fp32, 0.005 fp16, 0.01 int8.", panel="Parity"
    )
    trust: tuple[str, ...] = option(
        (), "A factory ('module:function') that the checkpoint may import.", panel=_MODEL
    )


@dataclass(frozen=True)
class BenchOptions:
    """Measure artefacts on this device, interleaved."""

    artifacts: tuple[str, ...] = argument(
        "ONNX files, run folders or checkpoints.", default=(), required=False
    )
    baseline: str | None = option(
        None,
        "Compare the others with this one, or with a JSON file that bench wrote before.",
        panel="Measuring",
    )
    force_compare: bool = option(
        False, "Compare across devices, batches, modes or threads all the same.", panel="Measuring"
    )
    batch: str = option("1", "Batch sizes: '1' or '1,8'.", panel="Measuring")
    threads: str = option("1", "CPU threads: '1' or '1,2,4'.", panel="Measuring")
    mode: str = option(
        "steady",
        "steady (one call after another), paced (frames at --fps), cold (opened anew each time), throughput (--streams).",
        panel="Measuring",
    )
    fps: float = option(30.0, "Frames a second, for --mode paced.", panel="Measuring")
    streams: int = option(2, "Runners at once, a thread each, for --mode throughput.", panel="Measuring")
    seconds: float = option(3.0, "Measured time at least, for each artefact.", panel="Measuring")
    runs: int = option(200, "Measured runs at least, for each artefact.", panel="Measuring")
    warmup: float = option(1.0, "Warm-up at least, in seconds.", panel="Measuring")
    input: str = option("random", "Input: random or zeros; --images takes real ones.", panel="Measuring")
    images: Path | None = option(None, "Real images as input.", panel="Measuring")
    evaluate: Path | None = option(None, "Labelled images: accuracy of each artefact.", panel="Measuring")
    runtime: str = option("auto", "What runs it; auto goes by the file.", panel="Runtime")
    provider: str = option(
        "cpu", "Of ONNX Runtime: cpu, cuda, tensorrt or openvino; never a silent fallback.", panel="Runtime"
    )
    io_binding: bool = option(
        False, "ONNX Runtime: outputs stay bound from call to call (on the device for CUDA).", panel="Runtime"
    )
    spin: bool = option(
        False, "Threads spin while they wait: faster alone, slower on a shared machine.", panel="Runtime"
    )
    device: str = option("cpu", "Of torch: cpu, cuda or cuda:N.", panel="Runtime")
    per_layer: bool = option(
        False, "The operators' times too, where the runtime tells them.", panel="Looking closer"
    )
    diagnose: bool = option(
        False, "Say what holds each artefact back against --baseline, layer by layer.", panel="Looking closer"
    )
    power: float | None = option(
        None,
        "Energy too, measured for this many seconds for each artefact; 10 is good.",
        panel="Looking closer",
    )
    layer_table: Path | None = option(
        None, "Measure the layers that export --layers wrote; JSON file for prune --table.", panel="Measuring"
    )
    import_trtexec: Path | None = option(
        None,
        "Show what trtexec measured: its --exportTimes file, or what it printed.",
        panel="Looking closer",
    )
    output: Path | None = option(None, "JSON file to write.", flags=("--output", "-o"), panel=_RUN)
    csv: Path | None = option(None, "CSV file to write.", panel=_RUN)
    markdown: Path | None = option(None, "Markdown file to write.", panel=_RUN)
    history: bool = option(True, "Append to bench.jsonl of each run folder that is measured.", panel=_RUN)
    force: bool = option(False, "Replace an output that exists.", panel=_RUN)
    seed: int = option(0, "Seed of the random input and the bootstrap.", panel=_RUN)
    trust: tuple[str, ...] = option(
        (), "A factory ('module:function') that a checkpoint may import.", panel=_MODEL
    )


@dataclass(frozen=True)
class PredictOptions:
    """Name the class of each image."""

    artifact: str = argument("An ONNX file, a run folder or a checkpoint.", default="")
    images: Path | None = option(None, "A folder or a zip of images.")
    csv: Path | None = option(None, "Write a CSV file instead of a table.")
    top: int = option(1, "How many classes for each image.")
    threads: int = option(0, "CPU threads; 0 takes all cores.")
    force: bool = option(False, "Replace an output that exists.")
    trust: tuple[str, ...] = option((), "A factory ('module:function') that a checkpoint may import.")


@dataclass(frozen=True)
class InspectOptions:
    """Say what a file is, layer by layer."""

    file: str = argument("A run folder, a checkpoint, an ONNX file, or a model with --prunable.", default="")
    prunable: bool = option(False, "List what can be pruned, and why not the rest (needs torch).")
    sensitivity: bool = option(
        False, "Cut each coupling alone and say how far the answers move (needs torch)."
    )
    target: Path | None = option(None, "--sensitivity: unlabelled images.")
    images: int = option(64, "--sensitivity: how many of them, evenly spaced.")
    score: str = option("taylor", "--sensitivity: how channels are ranked.")
    plot: Path | None = option(None, "--sensitivity: draw it (.svg, .png or .pdf).")
    weights: str | None = option(
        None, "--sensitivity: weights of a model by name; published ones if not given."
    )
    map_by_order: bool = option(False, "Take weights whose shapes agree in order.")
    size: int | None = option(None, "Input height and width in pixels.")
    force: bool = option(False, "Replace a plot that exists.")
    trust: tuple[str, ...] = option((), "A factory ('module:function') that a checkpoint may import.")


@dataclass(frozen=True)
class ReportOptions:
    """Write one HTML page about runs."""

    runs: tuple[str, ...] = argument("Run folders.", default=())
    output: Path | None = option(None, "HTML file to write.", flags=("--output", "-o"))
    force: bool = option(False, "Replace an output that exists.")


@dataclass(frozen=True)
class DoctorOptions:
    """Say what is installed, what works, and what to install for the rest."""

    clear_cache: bool = option(False, "Empty the decoded-image cache.")
    cache: Path | None = option(None, "Folder of the decoded-image cache.")


@dataclass(frozen=True)
class DemoOptions(RunOptions):
    """All four commands on real digits, on a laptop CPU."""

    macs: str = option("0.4", "MACs to keep.")
    quick: bool = option(False, "A tenth of the training, to see it run; the numbers mean nothing.")
