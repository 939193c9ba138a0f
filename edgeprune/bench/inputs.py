"""What a runner is fed while it is timed: the same arrays for everyone, and recorded what they were."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeprune.artifact import TensorSpec
from edgeprune.errors import UsageError
from edgeprune.runtime.runner import Array, Feeds


def synthetic(specs: Sequence[TensorSpec], *, batch: int = 1, kind: str = "random", seed: int = 0) -> Feeds:
    """Arrays for a network's inputs; kind "random" (standard normal, or whole numbers 0..255) or "zeros".

    The first free dimension of each input becomes `batch`. UsageError when a fixed batch is another one, or
    when more than the batch is free.
    """
    if kind not in ("random", "zeros"):
        raise UsageError(f"input {kind!r}: expected random or zeros")
    random = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in specs:
        shape = shape_at(spec, batch)
        dtype = np.dtype(spec.dtype)
        if kind == "zeros":
            feeds[spec.name] = np.zeros(shape, dtype)
        elif dtype.kind == "f":
            feeds[spec.name] = random.standard_normal(shape).astype(dtype)
        else:
            feeds[spec.name] = random.integers(0, 128 if dtype == np.int8 else 256, shape).astype(dtype)
    return feeds


def shape_at(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """The shape of an input at a batch size; UsageError when the network does not take it."""
    first, *rest = spec.shape or (batch,)
    free = [d for d in rest if not isinstance(d, int)]
    if free:
        raise UsageError(
            f"input {spec.name}{list(spec.shape)}: only the batch may be free; export with a fixed size"
        )
    if isinstance(first, int) and first != batch:
        raise UsageError(
            f"input {spec.name}{list(spec.shape)} takes batch {first}, not {batch}: "
            f"export with --batch 1:{batch}:{batch}"
        )
    return (batch, *(d for d in rest if isinstance(d, int)))
