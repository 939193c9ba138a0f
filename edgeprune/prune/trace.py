"""One run of a network, seen as matrix products, and which couplings shrink which side of each.

What it must satisfy: every multiply-add is seen, also in functional attention and in layers used through
`torch.nn.functional`; the weight axes of a product follow the members of the couplings; all other sides
(heads, head dimensions, rows of a token-mixing layer) are found by following channels through the network.

How the others are found (ours): the smallest legal step of a coupling is marked with NaN where its layers
produce it. Products are not computed: their output is noise, marked where a whole row or column of an operand
is marked. Norms, softmax and reductions pass marks on only where all they reduce over is marked. A side of a
product of which a share is marked shrinks with that coupling. Couplings alive at different times share one
run, so a few cheap runs do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from edgeprune.prune.coupling import Coupling, Couplings
from edgeprune.prune.product import Product, of_convolution, of_matmul

_aten = torch.ops.aten
_PRODUCTS = {_aten.mm: (0, 1), _aten.bmm: (0, 1), _aten.addmm: (1, 2), _aten.baddbmm: (1, 2)}
_ELEMENTWISE = {
    _aten.native_layer_norm,
    _aten.native_group_norm,
    _aten.native_batch_norm,
    _aten._native_batch_norm_legit_no_training,
    _aten.cudnn_batch_norm,
    _aten._softmax,
    _aten._safe_softmax,
    _aten._log_softmax,
}
_REDUCTIONS = {
    _aten.mean,
    _aten.sum,
    _aten.amax,
    _aten.amin,
    _aten.linalg_vector_norm,
    _aten.var,
    _aten.var_mean,
    _aten.std,
}


def step(coupling: Coupling) -> list[int]:
    """The smallest set of channels that may go together: one unit of the first section, or of each section."""
    run = coupling.width // coupling.sections
    return [s * run + i for s in range(coupling.sections) for i in range(coupling.unit)]


def products(module: nn.Module, example: Any, couplings: Couplings) -> list[Product]:
    """Every product of one forward pass in order, with the marks of all couplings that can be cut.

    example: a tensor or a tuple of arguments; counted as it is, so give batch 1 for MACs of one image.
    """
    args = example if isinstance(example, tuple) else (example,)
    names: dict[int, tuple[str, Tensor]] = {}
    for name, parameter in module.named_parameters():  # of shared ones the first name, as everywhere
        names.setdefault(parameter.untyped_storage().data_ptr(), (name, parameter))
    with _quiet(module) as inside:
        first = _Run(names, inside, {}, [])
        with first:
            module(*args)
        for crew in _crews(first.seen, couplings):
            rows = _rows([c for c, _, _ in crew])
            run = _Run(names, inside, rows, [(c.root, a, b) for c, a, b in crew])
            try:
                with run:
                    module(*args)
            except (
                RuntimeError,
                ValueError,
                IndexError,
            ):  # NaN where an index is computed: no marks from here on
                pass
            for product, again in zip(first.seen, run.seen, strict=False):
                for side, more in zip(product.marked, again.marked, strict=True):
                    side.update(more)
    return first.seen


@contextmanager
def _quiet(module: nn.Module) -> Iterator[list[nn.Module]]:
    """Evaluation mode, no gradients, attention spelt out, same random numbers; yields the stack of running
    modules.
    """
    inside: list[nn.Module] = []
    modes = [(m, m.training) for m in module.modules()]
    handles = []
    for m in module.modules():
        handles.append(m.register_forward_pre_hook(lambda m, _: inside.append(m)))
        handles.append(m.register_forward_hook(lambda m, _, __: inside.remove(m) if m in inside else None))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    module.eval()
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield inside
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
        for m, mode in modes:
            m.training = mode


def _crews(seen: Sequence[Product], couplings: Couplings) -> list[list[tuple[Coupling, int, int]]]:
    """Couplings with the time each one lives (first producer, last consumer), in crews that never overlap."""
    crews: list[list[tuple[Coupling, int, int]]] = []
    lives = []
    for coupling in couplings:
        names = {axis: {m.tensor for m in coupling.members if m.axis == axis} for axis in ("out", "in")}
        made = [i for i, p in enumerate(seen) if p.weight in names["out"]]
        used = [i for i, p in enumerate(seen) if p.weight in names["in"]]
        if made:
            start, end = min(made), max(used + made) if used else len(seen)
            if any(_open(p) for p in seen[start + 1 : end + 1]):
                lives.append((coupling, start, end))
    for life in sorted(lives, key=lambda x: (x[1], x[2])):
        for crew in crews:
            if crew[-1][2] <= life[1]:
                crew.append(life)
                break
        else:
            crews.append([life])
    return crews


def _open(product: Product) -> bool:
    """Whether a coupling may shrink a side of a product that no axis of a weight stands for."""
    batch, positions, _, _ = product.sides
    return product.weight is None or batch > 1 or (len(product.kernel) < 2 and positions > 1)


def _rows(crew: Sequence[Coupling]) -> dict[str, list[int]]:
    """Per weight name, the entries of its output axis that belong to the marked step of a coupling of the
    crew.
    """
    rows: dict[str, list[int]] = {}
    for coupling in crew:
        for member in coupling.members:
            if member.axis == "out":
                rows.setdefault(member.tensor, []).extend(i for c in step(coupling) for i in member.slices[c])
    return rows


class _Run(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """One forward pass; with lives given, products are not computed and marks are followed."""

    def __init__(
        self,
        names: Mapping[int, tuple[str, Tensor]],
        inside: list[nn.Module],
        rows: Mapping[str, list[int]],
        lives: Sequence[tuple[str, int, int]],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names, self.inside, self.rows, self.lives = names, inside, rows, lives
        self.modules = {p.data_ptr(): n for n, p in names.values()}
        self.seen: list[Product] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Record products; when marking, replace them and keep norms and reductions from spreading marks."""
        kwargs = dict(kwargs or {})
        packet = func.overloadpacket
        if packet in _PRODUCTS:
            return self._matmul(func, args, kwargs)
        if packet is _aten.convolution:
            return self._convolution(func, args)
        if self.lives and packet in _ELEMENTWISE and isinstance(args[0], Tensor):
            gone = args[0].isnan()
            out = func(args[0].nan_to_num(), *args[1:], **kwargs)
            head = out[0] if isinstance(out, tuple) else out
            head[gone] = math.nan
            return out
        if (
            self.lives
            and packet in _REDUCTIONS
            and isinstance(args[0], Tensor)
            and args[0].is_floating_point()
        ):
            return _reduce(func, args, kwargs)
        return func(*args, **kwargs)

    def _weight(self, operand: Tensor) -> tuple[str, Tensor] | None:
        """The parameter an operand is a view of, or the standardised copy of one."""
        found = self.names.get(operand.untyped_storage().data_ptr())
        if found is None and self.inside:
            own = getattr(self.inside[-1], "weight", None)
            if isinstance(own, Tensor) and own.numel() == operand.numel() and own.data_ptr() in self.modules:
                return self.modules[own.data_ptr()], own
        return found

    def _alive(self) -> str | None:
        """The coupling whose marks can arrive at the product that is about to be recorded."""
        now = len(self.seen)
        return next((root for root, start, end in self.lives if start < now <= end), None)

    def _matmul(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        i, j = _PRODUCTS[func.overloadpacket]
        a, b = args[i], args[j]
        product = of_matmul(a, b, self._weight(b), self._weight(a))
        root = self._alive()
        if not self.lives:
            out: Tensor = func(*args, **kwargs)
        else:
            out, sides = _matmul_marks(a, b)
            if root is not None:
                _note(product, root, sides)
            if product.weight and product.weight in self.rows and product.axes == (3, 2):
                low, high = product.rows
                gone = [r - low for r in self.rows[product.weight] if low <= r < high]
                out[..., gone] = math.nan
        self.seen.append(product)
        return out

    def _convolution(self, func: Any, args: tuple[Any, ...]) -> Tensor:
        x, w = args[0], args[1]
        found = self._weight(w)
        root = self._alive()
        if not self.lives:
            out: Tensor = func(*args)
            self.seen.append(of_convolution(args, out, found[0] if found else None))
            return out
        meta = func(x.to("meta"), w.to("meta"), None, *args[3:])
        out = _noise(tuple(meta.shape), x)
        product = of_convolution(args, out, found[0] if found else None)
        images = x.isnan().flatten(1).all(1)
        out[images] = math.nan
        if root is not None:
            _note(product, root, (images.sum(), 0, 0, 0))
        if x.ndim == 3 and math.prod(product.kernel) == 1:  # tokens as channels: channels are positions
            places = x.isnan().all(1)
            out.masked_fill_(places[:, None, :], math.nan)
            if root is not None:
                _note(product, root, (0, places.all(0).sum(), 0, 0))
        if product.weight and product.weight in self.rows:
            out[:, self.rows[product.weight]] = math.nan
        self.seen.append(product)
        return out


def _matmul_marks(a: Tensor, b: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Noise in place of a @ b, marked where an operand's whole row or column is, and how much of each side
    is.
    """
    ga, gb = (t.isnan() if t.ndim == 3 else t.isnan()[None] for t in (a, b))
    out = _noise((ga.shape[0], ga.shape[1], gb.shape[2]), a)
    out.masked_fill_(ga.all(2)[:, :, None], math.nan).masked_fill_(gb.all(1)[:, None, :], math.nan)
    batch = ga.flatten(1).all(1) | gb.flatten(1).all(1)
    inner = ga.flatten(0, 1).all(0) | gb.transpose(0, 1).flatten(1).all(1)
    rows, columns = ga.transpose(0, 1).flatten(1).all(1), gb.flatten(0, 1).all(0)
    return out if a.ndim == 3 else out[0], tuple(t.sum() for t in (batch, rows, inner, columns))


def _note(product: Product, root: str, counts: Sequence[Any]) -> None:
    """Keep what part of each side was marked; a side marked throughout says nothing."""
    for side, marks, size in zip(product.marked, counts, product.sides, strict=True):
        if 0 < int(marks) < size:
            side[root] = int(marks)


def _noise(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device).uniform_(0.1, 1.0)


def _reduce(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A reduction of what is not marked; its result is marked where everything it reduced was."""
    x: Tensor = args[0]
    gone = x.isnan()
    out = func(x.nan_to_num(), *args[1:], **kwargs)
    if not bool(gone.any()):
        return out
    names = [a.name for a in func._schema.arguments]  # type: ignore[attr-defined]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    dim = given.get("dim")
    dims = [dim] if isinstance(dim, int) else list(dim) if dim else list(range(x.ndim))
    every = gone.float().amin(dims, keepdim=bool(given.get("keepdim", False))).bool()
    for part in out if isinstance(out, tuple) else (out,):
        part.masked_fill_(every, math.nan)
    return out
