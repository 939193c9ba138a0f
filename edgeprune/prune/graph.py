"""Find the couplings of any image network: trace, read, keep what the user wants kept, and try each on a
copy.

Never a crash and never a wrong network: what is not understood, or fails its trial, is frozen with the
reason.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from edgeprune import attention, weights
from edgeprune.errors import ModelError, UsageError
from edgeprune.prune import families, rules, tracing
from edgeprune.prune.constants import remember
from edgeprune.prune.coupling import Couplings
from edgeprune.prune.preflight import Preflight, copy_of, forget_caches, liven
from edgeprune.prune.tracing import Trace


def find(
    module: nn.Module,
    example: Any,
    *,
    keep: Sequence[str] = (),
    keep_out: Sequence[str] = (),
    keep_in: Sequence[str] = (),
    verify: bool = True,
    seconds: float = 30.0,
    dense: Couplings | None = None,
) -> Couplings:
    """The couplings of `module`, in the order of execution; `module` is left as it is.

    example: what the forward takes, a tensor such as (2, 3, H, W) or a tuple of arguments. keep, keep_out,
    keep_in: globs over layer names; of those layers all, the output or the input channels stay. verify: try
    the cuts on a copy (after `seconds`, what has failed with others and not been tried alone is frozen).
    dense: the couplings before earlier cuts; of heads and their dimensions, groups and their channels, the same go on.
    UsageError when a glob matches nothing.
    """
    example = _detached(example)
    base = _lively(module, example)
    pair = example
    if isinstance(example, torch.Tensor):
        example = example[:1]  # one image shows as much as two, in half the time
    traced = copy_of(base)
    remember(traced)
    trace = Trace(traced)
    tracing.run(trace, example, rules.apply)
    length = len(trace.history)
    _trace_training(trace, pair)  # batch norms over one pixel want two images
    for sides, globs, word in (
        ((0, 1), keep, "keep"),
        ((0,), keep_out, "keep-out"),
        ((1,), keep_in, "keep-in"),
    ):
        for glob in globs:
            _keep(trace, glob, sides, word)
    before = families.decided(dense) if dense is not None else frozenset()
    if not verify:
        return families.couplings(trace, before).couplings
    return Preflight(base, trace, example, length, seconds, before).run().couplings


def _lively(module: nn.Module, example: Any) -> nn.Module:
    """A copy on which a wrong cut shows: every path counts, unless that makes the network overflow."""
    for enliven in (True, False):
        base = copy_of(module).eval().cpu().float()
        for part in base.modules():
            attention.open_up(part)
        forget_caches(base)
        if enliven:
            liven(base, example)
        with torch.no_grad():
            outputs = tree_leaves(base(*tracing.inputs_of(example)))
        forget_caches(base)
        if not any(isinstance(t, torch.Tensor) for t in outputs):
            found = type(outputs[0]).__name__ if outputs else "nothing"
            raise ModelError(
                f"the network returns {found}: no tensor to compare; return tensors, or tuples, lists or dicts of them"
            )
        if all(bool(torch.isfinite(t).all()) for t in outputs if isinstance(t, torch.Tensor)):
            break
    return base


def _detached(example: Any) -> Any:
    """The example beside the copy: on the CPU, float32."""

    def beside(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        leaf = leaf.detach().cpu()
        return leaf.float() if leaf.is_floating_point() else leaf

    return tree_map(beside, example)


def _trace_training(trace: Trace, example: Any) -> None:
    """Heads that run only in training couple channels too; what cannot run so stays out of training anyway."""
    unused = [n for n in dict(trace.module.named_parameters()) if n not in trace.used]
    if not unused:
        return
    state = {name: tensor.clone() for name, tensor in trace.module.state_dict().items()}
    trace.module.train()
    forget_caches(trace.module)
    try:
        tracing.run(trace, example, rules.apply)
    except Exception:  # a foreign forward that has no training mode: the trials decide
        trace.stack[:] = [""]
    trace.module.eval()
    weights.take(trace.module, state)  # a training run moves the statistics of batch norms


def _keep(trace: Trace, glob: str, sides: tuple[int, ...], word: str) -> None:
    layers = {
        name for name, part in trace.module.named_modules() if name and any(True for _ in part.parameters())
    }
    glob = glob.partition("@")[0]  # couplings are called after a layer, and numbered where it has several
    known = layers | set(trace.params)
    matched = {n for n in known if fnmatchcase(n, glob) or fnmatchcase(n, glob.rstrip(".") + ".*")}
    if not matched:
        raise UsageError(f"--{word} {glob}: no layer has such a name; {_near(glob, layers)}")
    for tensor, axes in trace.params.items():
        layer = tensor.rpartition(".")[0]
        if layer not in matched and tensor not in matched:
            continue
        transposed = isinstance(trace.module.get_submodule(layer), nn.modules.conv._ConvTransposeNd)
        for dim, ids in enumerate(axes[:2]):
            if ids is not None and (1 - dim if transposed and len(axes) > 1 else dim) in sides:
                trace.labels.pin(ids, f"--{word} {glob}")
        if 1 in sides and tensor in trace.inputs:
            trace.labels.pin(trace.inputs[tensor], f"--{word} {glob}")


def _near(glob: str, layers: set[str]) -> str:
    """End a sentence about a glob that matches nothing: near names, else a few of all."""
    plain = re.sub(r"[*?\[\]!]", "", glob).strip(".")
    close = difflib.get_close_matches(plain, sorted(layers), n=3, cutoff=0.5)
    inside = sorted(n for n in layers if plain and any(plain in part for part in n.split(".")))
    if found := close or inside[:3]:
        return f"did you mean {' or '.join(repr(c) for c in found)}?"
    some = sorted(layers, key=lambda n: (n.count("."), n))[:8]
    more = f" and {len(layers) - len(some)} more" if len(layers) > len(some) else ""
    return f"there are {', '.join(some)}{more}; `edgeprune inspect MODEL --prunable` lists them"
