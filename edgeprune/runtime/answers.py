"""What a runner says of images, whatever its fixed batch and whatever ends its graph has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeprune.runtime.runner import Array, Runner

PROBABILITIES, SCORES, CLASSES = "probabilities", "scores", "classes"


def outputs(runner: Runner, batch: Array) -> dict[str, Array]:
    """Every output for a batch of any size n, (n, ...) each; a fixed batch is run in pieces, the last one padded."""
    spec = runner.inputs[0]
    fixed = spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else len(batch)
    pieces: dict[str, list[Array]] = {t.name: [] for t in runner.outputs}
    for start in range(0, len(batch), fixed):
        piece = batch[start : start + fixed]
        short = fixed - len(piece)
        full = np.concatenate([piece, np.repeat(piece[-1:], short, axis=0)]) if short else piece
        made = runner.infer({spec.name: np.ascontiguousarray(full, dtype=spec.dtype)})
        for name, held in pieces.items():
            held.append(made[name][: len(piece)])
    return {name: np.concatenate(held) for name, held in pieces.items()}


def ranked(runner: Runner, batch: Array, top: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The `top` likeliest classes of each image and their shares in 0..1: (n, top) each, the best first.

    From logits by softmax; as they are from a graph that ends in probabilities; a graph that ends in its own K
    likeliest gives K when fewer than `top` are in it.
    """
    made = outputs(runner, batch)
    if CLASSES in made and SCORES in made:
        return made[CLASSES][:, :top].astype(np.int64), made[SCORES][:, :top].astype(np.float64)
    first = made[runner.outputs[0].name].reshape(len(batch), -1).astype(np.float64)
    shares = first if runner.outputs[0].name == PROBABILITIES else softmax(first)
    order = np.argsort(-shares, axis=1, kind="stable")[:, :top]
    return order.astype(np.int64), np.take_along_axis(shares, order, axis=1)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares (n, K) of logits (n, K)."""
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))
