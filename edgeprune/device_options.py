"""What the commands can be told that need no torch, on a board or here, and the demo: as in `edgeprune.options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeprune.options import MODEL, RUN, RunOptions, argument, option


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
    layout: str | None = option(None, "--embed-preprocess: nhwc (if not given) or nchw.", panel="Ends")
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
        None,
        "Largest share of top-1 answers that may change, such as 0.02 or 2%; by default 0 fp32, 0.5% fp16, 1% int8.",
        panel="Parity",
        metavar="SHARE",
    )
    mean: str | None = option(
        None, "Mean per channel, of pixels in 0..1: '0.485,0.456,0.406'.", panel="ONNX from elsewhere"
    )
    std: str | None = option(
        None, "Standard deviation per channel: '0.229,0.224,0.225'.", panel="ONNX from elsewhere"
    )
    size: int | None = option(
        None,
        "Input height and width in pixels, where the graph leaves them free.",
        panel="ONNX from elsewhere",
    )
    interpolation: str | None = option(
        None, "bilinear (if not given), bicubic or nearest.", panel="ONNX from elsewhere"
    )
    classes: Path | None = option(
        None, "File with the names of its classes, one a line.", panel="ONNX from elsewhere"
    )
    trust: tuple[str, ...] = option(
        (), "A factory ('module:function') that the checkpoint may import.", panel=MODEL
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
        "steady (call after call), paced (frames at --fps), cold (opened anew each time), throughput (--streams).",
        panel="Measuring",
    )
    fps: float | None = option(None, "--mode paced: frames a second; 30 if not given.", panel="Measuring")
    streams: int | None = option(
        None, "--mode throughput: runners at once, a thread each; 2 if not given.", panel="Measuring"
    )
    seconds: float = option(3.0, "Measured time at least, for each artefact.", panel="Measuring")
    runs: int = option(200, "Measured runs at least, for each artefact.", panel="Measuring")
    warmup: float = option(1.0, "Warm-up at least, in seconds.", panel="Measuring")
    input: str | None = option(
        None, "Input: random (if not given) or zeros; --images takes real ones.", panel="Measuring"
    )
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
    device: str | None = option(
        None, "Of torch: cpu (if not given), cuda or cuda:N; ONNX Runtime takes --provider.", panel="Runtime"
    )
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
    output: Path | None = option(None, "JSON file to write.", flags=("--output", "-o"), panel=RUN)
    csv: Path | None = option(None, "CSV file to write.", panel=RUN)
    markdown: Path | None = option(None, "Markdown file to write.", panel=RUN)
    history: bool = option(True, "Append to bench.jsonl of each run folder that is measured.", panel=RUN)
    force: bool = option(False, "Replace an output that exists.", panel=RUN)
    seed: int = option(0, "Seed of the random input and the bootstrap.", panel=RUN)
    trust: tuple[str, ...] = option(
        (), "A factory ('module:function') that a checkpoint may import.", panel=MODEL
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

    file: str = argument(
        "A run folder, a checkpoint, an ONNX file, an engine, or a model with --prunable.", default=""
    )
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
