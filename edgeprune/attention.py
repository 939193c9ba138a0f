"""Multi-head attention whose heads can be fewer than its width says; equal to torch's where nothing was cut.

torch.nn.MultiheadAttention ties the width inside its heads to the width of its input. A network whose heads
or stream were cut keeps the module and its tensors, and gets this forward.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MARK = "slim"
"""The attribute that says so in a checkpoint."""


class SlimAttention(nn.MultiheadAttention):
    """in_proj_weight (3*I, E), out_proj (E, I), I = num_heads * head_dim, which need not be E."""

    slim: bool
    head_dim: int

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch.nn.MultiheadAttention's; inputs (N, L, E) when batch_first, else (L, N, E), or (L, E)."""
        single = query.dim() == 2
        if single:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        assert self.in_proj_weight is not None
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None,) * 3
        q, k, v = (
            self._heads(F.linear(x, w, b))
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        mask = self._mask(q, k, attn_mask, key_padding_mask)
        attended: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            attended = torch.softmax(scores if mask is None else scores + mask, -1)
            mixed = F.dropout(attended, self.dropout, self.training) @ v
            attended = attended.mean(1) if average_attn_weights else attended
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if single:
            return out.squeeze(0), None if attended is None else attended.squeeze(0)
        return (out if self.batch_first else out.transpose(0, 1)), attended

    def _heads(self, x: Tensor) -> Tensor:
        """(N, L, I) -> (N, heads, L, head_dim)."""
        return x.view(x.size(0), x.size(1), self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, q: Tensor, k: Tensor, attention: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """One additive mask that broadcasts to (N, heads, L, S)."""
        parts = []
        if attention is not None:
            part = _additive(attention, q)
            parts.append(
                part if part.dim() == 2 else part.view(q.size(0), self.num_heads, q.size(2), k.size(2))
            )
        if padding is not None:
            parts.append(_additive(padding, q).view(q.size(0), 1, 1, k.size(2)))
        return parts[0] + parts[-1] if len(parts) == 2 else parts[0] if parts else None


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
    return mask.to(like.dtype)


def open_up(part: nn.Module) -> bool:
    """Give a torch.nn.MultiheadAttention the forward above, in place; False when it is none, or of a kind not
    followed.
    """
    if type(part) is not nn.MultiheadAttention:
        return False
    if not part._qkv_same_embed_dim or part.bias_k is not None or part.add_zero_attn:
        return False
    part.__class__ = SlimAttention
    setattr(part, MARK, True)
    part._qkv_same_embed_dim = False  # so torch's encoder layer takes no fast path around this forward
    return True
