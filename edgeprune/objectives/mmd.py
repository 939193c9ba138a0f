"""Maximum mean discrepancy between weighted source rows and target rows: what DAN, JAN and SWMMD share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)  # 2^-3 ... 2^1 of the mean squared distance


def squared_distances(rows: Tensor) -> Tensor:
    """|x_i - x_j|^2, (M, M), of rows (M, D); differences, not products: float32 would cancel near the diagonal."""
    return (rows.unsqueeze(0) - rows.unsqueeze(1)).square().sum(2)


def gaussian_kernels(rows: Tensor, widths: Sequence[float] = WIDTHS) -> Tensor:
    """sum_a exp(-|x_i - x_j|^2 / (2 a m)), (M, M), m the mean of all squared distances, a constant of the step.

    Long et al., DAN, ICML 2015, arXiv 1502.02791; several widths around the data's own as in TLLib.
    """
    distance = squared_distances(rows)
    mean = distance.detach().mean().clamp_min(1e-30)  # rows that are all alike; its inverse is still finite
    return torch.stack([torch.exp(-distance / (2 * a * mean)) for a in widths]).sum(0)


def squared_mmd(kernel: Tensor, weight: Tensor, *, unbiased: bool) -> Tensor:
    """|| sum_i a_i phi(s_i) - mean_j phi(t_j) ||^2, a scalar, of a kernel (n + m, n + m) over (source, target).

    weight (n,): a before it is made to sum to 1; 0 when no row counts. unbiased: no row meets itself (the U statistic,
    which may be below 0); for equal weights the factors are 1 / (n (n - 1)) and 1 / (m (m - 1)). Products and sums,
    not matrix products: autocast would round those to half precision, and the loss is a small difference.
    """
    n, m = len(weight), len(kernel) - len(weight)
    a = weight / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
    b = torch.full_like(a[:1], 1 / m).expand(m)
    across = (torch.outer(a, b) * kernel[:n, n:]).sum()
    within = _within(kernel[:n, :n], a, unbiased) + _within(kernel[n:, n:], b, unbiased)
    return (within - 2 * across) * (weight.sum() > 0)


def _within(kernel: Tensor, a: Tensor, unbiased: bool) -> Tensor:
    pairs = torch.outer(a, a)
    if unbiased:  # left out, not subtracted: with one heavy row that would cancel
        pairs = pairs * (1 - torch.eye(len(a), dtype=a.dtype, device=a.device))
        pairs = pairs / pairs.sum().clamp_min(torch.finfo(a.dtype).tiny)
    return (pairs * kernel).sum()
