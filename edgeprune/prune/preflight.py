"""Every coupling is tried on a copy before it is offered: the cut network must compute what the masked one
computes.

What fails is pinned with the reason, and the couplings are read again (another factor of the same axis may be
cut instead), until what is left passes together.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from edgeprune.errors import PlanError
from edgeprune.plan import Cut, PruningPlan
from edgeprune.prune import families, masked, surgery
from edgeprune.prune.families import Decided, Found
from edgeprune.prune.tracing import Trace, inputs_of

TOLERANCE = 1e-3
"""Largest difference, relative to the output's largest value, that float32 is granted (measured: below 1e-4).
"""

ALIKE = 0.98
"""Share of answers that are whole numbers which must be the same."""

_FAR = "the cut network differs from the masked one by"
_NEAR = _FAR + " only"


@dataclass
class Preflight:
    """Trials on copies of `base`, the network that `trace` traced (`length` operators make its run).

    before: as of `families.couplings`.
    """

    base: nn.Module
    trace: Trace
    example: Any
    length: int
    seconds: float
    before: Decided = frozenset()
    trials: int = 0
    started: float = field(default_factory=time.monotonic)

    def run(self) -> Found:
        """The couplings of which all that can be cut were cut together and found equal."""
        while True:
            found = families.couplings(self.trace, self.before)
            free = [c.root for c in found.couplings]
            failed = self._failures(found, free)
            if not failed:
                return found
            for root, why in failed:
                for primitive in found.primitives[root]:
                    self.trace.labels.pinned.setdefault(self.trace.labels.root(primitive), why)

    def _failures(self, found: Found, roots: Sequence[str]) -> list[tuple[str, str]]:
        if not roots:
            return []
        why = self.trial(found, roots)
        if why is None:
            return []
        if len(roots) == 1:
            return [(roots[0], why)]
        if time.monotonic() - self.started > self.seconds:
            return [(root, f"not tried alone for lack of time; with others: {why}") for root in roots]
        middle = len(roots) // 2
        failed = self._failures(found, roots[:middle]) + self._failures(found, roots[middle:])
        return failed or [(root, f"together with {roots[0]}: {why}") for root in roots[middle:]]

    def trial(self, found: Found, roots: Sequence[str]) -> str | None:
        """Cut these couplings on a copy, each by a share of its own: what only fits by chance while all shrink alike is
        found. None when it equals the masked network, else what went wrong.
        """
        self.trials += 1
        cuts, dead = _some(found, roots, self.trials)
        why = self._compare(found, cuts, dead, torch.float32)
        if why is not None and why.startswith(_NEAR):
            # A deep network may be off by rounding alone; float64 tells.
            why = self._compare(found, cuts, dead, torch.float64)
        return why

    def _compare(
        self, found: Found, cuts: tuple[Cut, ...], dead: frozenset[int], dtype: torch.dtype
    ) -> str | None:
        slim = copy_of(self.base).to(dtype)
        example = tree_map(
            lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, self.example
        )
        try:
            surgery.apply(slim, PruningPlan(cuts), found.couplings)
            with torch.no_grad():
                result = slim(*inputs_of(example))
        except PlanError as err:
            return str(err)
        except Exception as err:  # whatever a foreign forward raises on a width it was not written for
            return f"the cut network does not run: {_first_line(err)}"
        forget_caches(self.trace.module)
        try:
            reference = masked.run(self.trace, dead, example, self.length, dtype)
        except Exception as err:
            return f"the masked network cannot be computed: {_first_line(err)}"
        return _differs(_tensors(reference), _tensors(result))


def _some(found: Found, roots: Sequence[str], seed: int) -> tuple[tuple[Cut, ...], frozenset[int]]:
    generator = torch.Generator().manual_seed(seed)
    cuts, dead = [], set()
    for root in roots:
        channels = found.primitives[root]
        distinct = list(dict.fromkeys(channels))
        order = torch.randperm(len(distinct), generator=generator).tolist()
        gone = {distinct[n] for n in order[: _count(root, len(distinct))]}
        dead |= gone
        cuts.append(Cut(root, len(channels), tuple(n for n, p in enumerate(channels) if p not in gone)))
    return tuple(cuts), frozenset(dead)


def _count(root: str, width: int) -> int:
    """How many go: at least one and not all, by the name alone; of many channels a multiple of eight, as in plans."""
    drawn = int.from_bytes(hashlib.sha256(root.encode()).digest()[:4], "big")
    return 8 * (1 + drawn % (width // 8 - 1)) if width >= 16 else 1 + drawn % (width - 1)


def _differs(reference: list[Tensor], result: list[Tensor]) -> str | None:
    if [t.shape for t in reference] != [t.shape for t in result]:
        return "the cut network's outputs have another shape"
    if not any(
        want.is_floating_point() for want in reference
    ):  # classes of pixels, say: a tie may fall otherwise
        same = [float((want == got).double().mean()) for want, got in zip(reference, result, strict=True)]
        return "the cut network answers otherwise" if min(same, default=1.0) < ALIKE else None
    for want, got in zip(reference, result, strict=True):
        if not want.is_floating_point() or not want.numel():
            continue
        if not bool(torch.isfinite(got).all()):
            return "the cut network's outputs are not finite"
        scale = float(want.abs().max()) or 1.0
        off = float((want - got).abs().max()) / scale
        if off > TOLERANCE:
            return f"{_NEAR if off < 0.1 else _FAR} {off:.1g} of the output's scale"
    return None


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _first_line(err: Exception) -> str:
    text = str(err).strip().splitlines()
    return (text[0] if text else type(err).__name__)[:160]


def copy_of(module: nn.Module) -> nn.Module:
    """A deep copy, also of networks that keep tensors with a history as plain attributes."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            for leaf in (
                [value] if isinstance(value, Tensor) else list(value.values()) if type(value) is dict else ()
            ):
                if isinstance(leaf, Tensor) and leaf.grad_fn is not None:
                    memo[id(leaf)] = leaf.detach().clone()
    return copy.deepcopy(module, memo)


def forget_caches(module: nn.Module) -> None:
    """Empty dictionaries of tensors that a forward fills for later runs."""
    for part in module.modules():
        for key, value in vars(part).items():
            cache = key not in ("_buffers", "_parameters") and type(value) is dict
            if cache and all(isinstance(v, Tensor) for v in value.values()):
                value.clear()


def liven(module: nn.Module, example: Any) -> None:
    """Make every path count: no gain, scale or kernel is zero or tiny, and batch-norm statistics fit (in
    place).
    """
    generator = torch.Generator().manual_seed(0)
    norms = [
        m
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    with torch.no_grad():
        for tensor in module.parameters():
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            if float(tensor.abs().max()) < 1e-3 or (
                tensor.dim() == 1 and float(tensor.std(correction=0)) < 1e-6
            ):
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
                tensor.copy_(noise + 0.5 if tensor.dim() < 2 else (noise - 0.5) * 0.2)
        before = [(m.momentum, m.training) for m in norms]
        hooks = [norm.register_forward_pre_hook(_fit) for norm in norms]
        try:
            module(*inputs_of(example))
        finally:
            for hook in hooks:
                hook.remove()
            for norm, (momentum, training) in zip(norms, before, strict=True):
                norm.momentum, norm.training = momentum, training


def _fit(norm: Any, args: tuple[Tensor, ...]) -> None:
    """Let a batch norm take the statistics of what enters it; of one value a channel there are none."""
    norm.momentum, norm.training = 1.0, args[0].numel() > args[0].shape[1]
