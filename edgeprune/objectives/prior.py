"""How a target's classes are spread, from the answers of a network that was trained on others: which may be absent."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS, CLOSE = 100, 1e-5


@torch.no_grad()
def label_prior(logits: Tensor) -> Tensor:
    """pi (K,), sum 1, that makes the answers to target logits (M, K) most likely, were only the prior another.

    Saerens, Latinne and Decaestecker, Adjusting the Outputs of a Classifier to New a Priori Probabilities, Neural
    Computation 2002, doi 10.1162/089976602753284446, their EM: pi_c <- mean_j p_jc pi_c / sum_k p_jk pi_k, p the
    softmax, for a source whose classes are alike in number. The mean of p says of an absent class how much it looks
    like those that are there; this says that those explain it. Up to `ROUNDS`, or until none moves by `CLOSE`.
    """
    p = logits.float().softmax(1)
    pi = torch.full_like(p[0], 1 / p.shape[1])
    for _ in range(ROUNDS):
        new = pi * (p.T @ (p @ pi).clamp_min(torch.finfo(p.dtype).tiny).reciprocal()) / len(p)
        moved, pi = float((new - pi).abs().max()), new
        if moved < CLOSE:
            break
    return pi


def plentiful(logits: Tensor, rare: int) -> Tensor:
    """Bool (K,): classes of which target logits (M, K) say more than `rare` images by `label_prior`; all if none."""
    found = label_prior(logits) * len(logits) > rare
    return found if bool(found.any()) else torch.ones_like(found)
