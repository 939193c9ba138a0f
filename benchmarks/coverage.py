"""Which network families can be pruned, end to end: cut to half the MACs, train a step, reload, export, prove, time.

    python -m benchmarks.coverage [--only GLOB] [--list] [--limit SECONDS] [--keep 0.27] [--torch-pruning] [--shared]

Random weights, default size, one row a network under results/coverage.json, each in a process of its own. A row that is
present is skipped; `--docs` writes docs/prunability.md from the rows. Planning is timed in seconds of one core.

`--keep 0.27` is a second operating point, in results/coverage_0.27.json. `--torch-pruning` makes the same rows with
Torch-Pruning alone (results/coverage_torch_pruning.json): BasePruner with its own defaults, group magnitude, widths of
8, in steps until the MACs are down. It cannot reload a cut network without pickle, so that step is left out for it.
`--docs` compares the two on the networks that both complete: speed-up over the reduction of MACs. `--shared` leaves out
the networks that either tool did not complete at half the MACs.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgeprune.artifact import write_atomically
from edgeprune.model import Network

Facts = dict[str, Any]
FOLDER = Path(__file__).with_name("results")
KEPT = 0.5
STEPS = 50  # of Torch-Pruning, to 95% of the channels
TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_0
swin_t swin_v2_t vgg11_bn vit_b_16 wide_resnet50_2
""".split()  # noqa: SIM905 (one word a network reads better)
TIMM = """
resnet18 resnetv2_18 seresnet18 ecaresnet26t skresnet18 resnest14d res2net50_14w_8s resnext26ts dpn48b densenet121
vgg11_bn mobilenetv2_100 mobilenetv3_small_050 mobilenetv4_conv_small tf_efficientnet_lite0 efficientnet_b0
efficientnetv2_rw_t mnasnet_small mixnet_s ghostnet_100 hardcorenas_a lcnet_050 tinynet_e rexnet_100 regnetx_002
regnety_002 regnetz_b16 cspresnet50 cspdarknet53 darknet53 dla34 hrnet_w18_small ese_vovnet19b_dw selecsls42b
xception41 inception_v3 nfnet_l0 eca_nfnet_l0 convnext_atto convnextv2_atto edgenext_xx_small poolformer_s12
poolformerv2_s12 efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_m0 fastvit_t8 mobilevit_xxs
mobilevitv2_050 mobileone_s0 repvgg_a0 repvit_m0_9 levit_128s vit_tiny_patch16_224 deit_tiny_patch16_224
cait_xxs24_224 xcit_nano_12_p16_224 coat_tiny crossvit_tiny_240 pit_ti_224 swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 twins_pcpvt_small mixer_s32_224 resmlp_12_224 gmixer_12_224 gmlp_ti16_224 convmixer_768_32
volo_d1_224 visformer_tiny tiny_vit_5m_224 fasternet_t0 mambaout_femto starnet_s1 inception_next_atto halonet26t
bat_resnext26ts tresnet_m focalnet_tiny_srf davit_tiny maxvit_rmlp_pico_rw_256 coatnet_nano_rw_224 nextvit_small
caformer_s18 gernet_s
""".split()  # noqa: SIM905


def row(spec: str, folder: Path, kept: float = KEPT, *, theirs: bool = False) -> dict[str, Any]:
    """Everything for one network; a step that fails is named in `failed` with the first line of its error."""
    facts: dict[str, Any] = {"network": spec, "kept": kept, "failed": None}
    step = "open"
    try:
        network = _open(spec)
        works = (_count, _cut_theirs, _train, _export) if theirs else (_count, _cut, _train, _reload, _export)
        for work in works:
            step = work.__name__.strip("_")
            facts |= work(network, folder, facts)
        step = "dense"
        _dense(_open(spec), folder)
        step = "time"
        facts |= _time(folder)
    except Exception as err:  # a row says what failed; the table is about exactly that
        lines = str(err).strip().splitlines() or [type(err).__name__]
        facts["failed"] = f"{step}: {type(err).__name__}: {lines[0][:200]}"
    return facts


def _open(spec: str) -> Network:
    import torch

    from edgeprune.opening import open_network
    from edgeprune.options import ModelOptions

    torch.manual_seed(0)
    network, _ = open_network(spec, ModelOptions(weights="none"))
    with torch.no_grad():  # running statistics of some input, so that activations stay finite
        network.module.train()(network.example(4))
    network.module.eval()
    return network


def _count(network: Network, folder: Path, facts: Facts) -> Facts:
    from edgeprune.prune import macs

    dense_macs, dense_params = macs.measure(network.module, network.example())
    return {"dense_macs": dense_macs, "dense_params": dense_params}


def _dense(network: Network, folder: Path) -> None:
    from edgeprune.export import onnx as exporting

    exporting.export(network, folder / "dense.onnx", batch="1:3:3", images=[network.example(3).numpy()])


def _cut(network: Network, folder: Path, facts: Facts) -> Facts:
    import torch

    from edgeprune.prune import budget, graph, macs, surgery
    from edgeprune.prune.scores.magnitude import Magnitude

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begin, example = time.process_time(), network.example()
    couplings = graph.find(network.module, example)
    scores = Magnitude()(network.module, couplings)
    limits = {"macs": facts["kept"] * facts["dense_macs"]}
    plan = budget.plan(network.module, example, couplings, scores, limits)
    seconds = round(time.process_time() - begin, 2)
    torch.set_num_threads(threads)
    surgery.apply(network.module, plan, couplings)
    now, params = macs.measure(network.module, example)
    with torch.no_grad():
        assert bool(torch.isfinite(network.module(example)).all()), "the output is not finite"
    frozen = {c.root: c.frozen for c in couplings.all if c.frozen is not None}
    return {
        "plan_s": seconds,
        "couplings": len(couplings.all),
        "frozen": frozen,
        "macs": now,
        "params": params,
    }


def _cut_theirs(network: Network, folder: Path, facts: Facts) -> Facts:
    """Torch-Pruning as its readme shows it: a pruner in steps, the classifier ignored, until the MACs are reached."""
    import torch
    import torch_pruning

    from edgeprune.prune import macs

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begin, example, module = time.process_time(), network.example(1), network.module
    pruner = torch_pruning.pruner.BasePruner(
        module,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.95,
        iterative_steps=STEPS,
        round_to=8,
        ignored_layers=[module.get_submodule(network.classifier)],
    )
    now = facts["dense_macs"]
    for _ in range(STEPS):
        pruner.step()
        now, params = macs.measure(module, example)
        if now <= facts["kept"] * facts["dense_macs"]:
            break
    else:
        raise RuntimeError(f"{now / facts['dense_macs']:.3f} of the MACs are left when nothing more can go")
    seconds = round(time.process_time() - begin, 2)
    torch.set_num_threads(threads)
    with torch.no_grad():
        assert bool(torch.isfinite(module(example)).all()), "the output is not finite"
    return {"plan_s": seconds, "macs": now, "params": params}


def _train(network: Network, folder: Path, facts: Facts) -> Facts:
    _scalar(network.module.train()(network.example(4))).backward()
    network.module.zero_grad()
    network.module.eval()
    return {}


def _reload(network: Network, folder: Path, facts: Facts) -> Facts:
    from edgeprune import checkpoint

    checkpoint.write(folder / "slim.safetensors", network)
    _same_in_a_fresh_process(folder, network)
    return {}


def _export(network: Network, folder: Path, facts: Facts) -> Facts:
    from edgeprune.export import onnx as exporting

    made = exporting.export(network, folder / "slim.onnx", batch="1:3:3", images=[network.example(3).numpy()])
    parity = made.meta["parity"]["relative"]
    return {"onnx_macs": made.meta["macs"], "exporter": made.meta["exporter"], "parity": parity}


def _time(folder: Path) -> Facts:
    from edgeprune.bench import inputs
    from edgeprune.bench.compare import compare
    from edgeprune.bench.measure import measure
    from edgeprune.runtime import ort

    with ort.open(folder / "dense.onnx") as dense, ort.open(folder / "slim.onnx") as slim:
        feeds = {"dense": inputs.synthetic(dense.inputs), "slim": inputs.synthetic(slim.inputs)}
        samples = measure({"dense": dense, "slim": slim}, feeds, warmup_s=0.3, min_s=0.8, min_runs=20)
    verdict = compare(samples["dense"], samples["slim"])
    return {"speedup": verdict.speedup, "speedup_low": verdict.ci_low, "speedup_high": verdict.ci_high}


def _scalar(output: Any) -> Any:
    """One number to differentiate: auxiliary heads make a tuple of outputs in training."""
    import torch

    leaves = torch.utils._pytree.tree_leaves(output)
    return torch.stack([leaf.float().mean() for leaf in leaves if isinstance(leaf, torch.Tensor)]).sum()


def _same_in_a_fresh_process(folder: Path, network: Any) -> None:
    import torch

    code = (
        "import sys, torch; from pathlib import Path; from edgeprune import checkpoint; f = Path(sys.argv[1]);"
        "n = checkpoint.read(f / 'slim.safetensors');"
        "torch.save(n.module(n.example(2)).detach(), f / 'out.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True)
    with torch.no_grad():
        here = network.module(network.example(2))
    assert torch.equal(torch.load(folder / "out.pt", weights_only=True), here), (
        "the reloaded network answers otherwise"
    )


def place(kept: float = KEPT, *, theirs: bool = False) -> Path:
    """The file of one operating point and tool."""
    return FOLDER / f"coverage{'_torch_pruning' if theirs else ''}{'' if kept == KEPT else f'_{kept:g}'}.json"


def completed(kept: float = KEPT, *, theirs: bool = False) -> set[str]:
    """The networks that came through every step."""
    return {str(r["network"]) for r in load(place(kept, theirs=theirs)) if not r["failed"]}


def load(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none when it is not there."""
    return list(json.loads(path.read_text())["rows"]) if path.exists() else []


def _save(rows: list[dict[str, Any]], path: Path) -> None:
    from edgeprune.bench import machine

    host = machine.describe()
    facts = {"command": "python -m benchmarks.coverage", "packages": host["packages"], "cpu": host["cpu"]}
    write_atomically(path, (json.dumps({**facts, "rows": rows}, indent=1) + "\n").encode())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="glob over the specs")
    parser.add_argument("--list", action="store_true", help="print the rows and their state")
    parser.add_argument("--limit", type=float, default=400.0, help="seconds a row")
    parser.add_argument("--docs", action="store_true", help="write docs/prunability.md")
    parser.add_argument("--keep", type=float, default=KEPT, help="share of the MACs to keep")
    parser.add_argument("--torch-pruning", action="store_true", help="the same with Torch-Pruning alone")
    parser.add_argument(
        "--shared", action="store_true", help="only networks both tools complete at half the MACs"
    )
    parser.add_argument("--row", nargs=2, metavar=("SPEC", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        made = row(args.row[0], Path(args.row[1]), args.keep, theirs=args.torch_pruning)
        print("ROW " + json.dumps(made))
        return 0
    path = place(args.keep, theirs=args.torch_pruning)
    more = ["--keep", str(args.keep), *(["--torch-pruning"] if args.torch_pruning else [])]
    rows = load(path)
    done = {r["network"] for r in rows}
    specs = [f"torchvision:{n}" for n in TORCHVISION] + [f"timm:{n}" for n in TIMM]
    if args.shared:
        both = completed() & completed(theirs=True)
        specs = [s for s in specs if s in both]
    for spec in (s for s in specs if fnmatch.fnmatch(s, args.only)):
        if args.list:
            print(f"{'done' if spec in done else 'open'}  {spec}")
        elif spec not in done and not args.docs:
            rows.append(_row_in_a_process(spec, args.limit, args.keep, more))
            _save(rows, path)
            print(spec, rows[-1]["failed"] or "complete", flush=True)
    if args.docs:
        from benchmarks import prunability

        prunability.write()
    return 0


def _row_in_a_process(spec: str, limit: float, kept: float, words: list[str]) -> dict[str, Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-m", "benchmarks.coverage", *words, "--row", spec, folder]
        try:
            out = subprocess.run(call, capture_output=True, text=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            return {"network": spec, "kept": kept, "failed": f"took longer than {limit:.0f} s"}
    for line in out.stdout.splitlines():
        if line.startswith("ROW "):
            return dict(json.loads(line[4:]))
    return {"network": spec, "kept": kept, "failed": f"the process ended with {out.returncode}"}


if __name__ == "__main__":
    sys.exit(main())
