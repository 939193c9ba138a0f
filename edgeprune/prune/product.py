"""One convolution or matrix product of a forward pass: its sides, and which parameter one operand is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Product:
    """One convolution or matrix product of a run.

    sides: batch, rows, inner, columns of a matrix product; batch, positions, in, out of a convolution (as
    long as the two channel axes of its weight). macs = the product of the sides times `times`. weight: name
    of the parameter that is an operand, or None; axes: which sides its axes 0 and 1 are; rows: which of its
    axis 0 entries take part. marked: for each side, per coupling, how many of its entries go with the step
    that was marked.
    """

    kind: str
    sides: tuple[int, int, int, int]
    times: float
    weight: str | None
    rows: tuple[int, int] = (0, 0)
    axes: tuple[int, int] = (3, 2)
    size: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    marked: tuple[dict[str, int], ...] = field(default_factory=lambda: ({}, {}, {}, {}))

    @property
    def macs(self) -> int:
        """Multiply-adds of this product."""
        return round(math.prod(self.sides) * self.times)


def of_matmul(
    a: Tensor, b: Tensor, right: tuple[str, Tensor] | None, left: tuple[str, Tensor] | None
) -> Product:
    """The record of a @ b, (n,k) x (k,m), batched or not; the right operand is a weight in a linear layer."""
    batch, n, k = map(int, a.shape if a.ndim == 3 else (1, *a.shape))
    m = int(b.shape[-1])
    found = right or left
    product = Product("MatMul", (batch, n, k, m), 1.0, found[0] if found else None, size=(batch * n,))
    if right is None:
        product.axes, product.rows = (1, 2), (0, n)
        return product
    own = right[1]
    as_stored = b.ndim == 2 == own.ndim and b.stride() == own.stride() and b.stride(0) != b.stride(1)
    product.axes = (2, 3) if as_stored else (3, 2)
    same = b.untyped_storage().data_ptr() == own.untyped_storage().data_ptr()
    low = int(b.storage_offset() - own.storage_offset()) // max(int(own.stride(0)), 1) if same else 0
    product.rows = (low, low + product.sides[product.axes[0]])
    return product


def of_convolution(args: tuple[Any, ...], out: Tensor, name: str | None) -> Product:
    """The record of a convolution; transposed ones multiply at each input position, not at each output one."""
    x, w, _, stride, padding, dilation, transposed, _, groups = args
    positions = math.prod(x.shape[2:] if transposed else out.shape[2:])
    kernel = tuple(w.shape[2:])
    s, p, d = (tuple(v) * len(kernel) if len(v) == 1 else tuple(v) for v in (stride, padding, dilation))
    kind, axes = ("ConvTranspose", (2, 3)) if transposed else ("Conv", (3, 2))
    channels = (w.shape[0], w.shape[1]) if transposed else (w.shape[1], w.shape[0])
    sides = (x.shape[0], positions, *channels)
    rows, size = (0, w.shape[0]), tuple(x.shape[2:])
    times = float(math.prod(kernel))
    return Product(kind, sides, times, name, rows, axes, size, kernel, s, p, d, groups)
