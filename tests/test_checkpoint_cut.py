"""Networks of five families, cut, saved, and rebuilt by a fresh process: bit-equal, and really smaller."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgeprune import checkpoint, header
from edgeprune.opening import open_network
from edgeprune.options import ModelOptions
from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune import graph, surgery

SPECS = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:densenet121",
    "timm:vit_tiny_patch16_224",
    "timm:swin_tiny_patch4_window7_224",
)
READ = """
import sys, torch
from pathlib import Path
from edgeprune import checkpoint
network = checkpoint.read(Path(sys.argv[1]))
torch.save(network.module(network.example()).detach(), sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
def test_a_cut_network_is_rebuilt(spec: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, _ = open_network(spec, ModelOptions(weights="none"))
    couplings = graph.find(network.module, network.example(), verify=False)
    cuts = []
    for c in couplings:
        run = c.width // c.sections
        kept = max(c.unit, run // 2 // c.unit * c.unit)
        keep = [s * run + i for s in range(c.sections) for i in range(kept)]
        cuts.append(Cut(c.root, c.width, tuple(keep)))
    dense = sum(p.numel() for p in network.module.parameters())
    surgery.apply(network.module, PruningPlan(tuple(cuts)), couplings)
    assert sum(p.numel() for p in network.module.parameters()) < 0.6 * dense
    file = tmp_path / "slim.safetensors"
    checkpoint.write(file, network)
    assert len(header.read(file).document["attributes"]) > 0
    subprocess.run([sys.executable, "-c", READ, str(file), str(tmp_path / "out.pt")], check=True)
    with torch.no_grad():
        here = network.module(network.example())
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), here)
