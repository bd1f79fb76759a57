"""ViTDet's attention with bounded memory.

Four of ViTDet-H's 32 blocks attend over the whole image: 16 heads of 4,096 x 4,096 scores, with relative positions and
the softmax several copies of them, 3.7 GB in half precision for one frame. A head needs nothing of another one's
scores, so that working on a few at a time gives the same numbers in a fraction of the memory.
"""

from __future__ import annotations

from importlib import import_module
from types import MethodType
from typing import Any

Tensor = Any
Module = Any

SCORES = 64 << 20
"""Bytes of attention scores that are held at once, before the copies that relative positions and softmax make: two
heads of a frame in half precision. Each is work enough for a whole GPU."""


def bound_attention(model: Module, scores: int = SCORES) -> int:
    """Let every attention of detectron2's ViT in ``model`` hold at most about ``scores`` bytes of scores at once.

    Where a single head has more, one head at a time. Equal to upstream's ``detectron2.modeling.backbone.vit.Attention``
    but for the order in which it computes.

    Returns:
        How many there were: 0 for a model without a ViT.
    """
    kind = import_module("detectron2.modeling.backbone.vit").Attention
    found = [module for module in model.modules() if isinstance(module, kind)]
    for module in found:
        module.scores_at_once = scores
        # Here, since torch.compile cannot look through an import.
        module.join = import_module("torch").cat
        module.positions = import_module("detectron2.modeling.backbone.utils").add_decomposed_rel_pos
        module.forward = MethodType(_attend, module)
    return len(found)


def _attend(self: Module, x: Tensor) -> Tensor:
    """``Attention.forward``: tokens (B, H, W, C) to (B, H, W, C)."""
    batch, height, width, channels = x.shape
    count = height * width
    qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
    queries, keys, values = qkv.reshape(3, batch * self.num_heads, count, -1).unbind(0)
    size = max(1, self.scores_at_once // (count * count * queries.element_size()))
    parts = [
        _heads(self, queries[start : start + size], keys[start : start + size], values[start : start + size],
               (height, width))
        for start in range(0, batch * self.num_heads, size)
    ]  # fmt: skip
    joined = parts[0] if len(parts) == 1 else self.join(parts)
    heads = joined.view(batch, self.num_heads, height, width, -1)
    out: Tensor = self.proj(heads.permute(0, 2, 3, 1, 4).reshape(batch, height, width, channels))
    return out


def _heads(self: Module, queries: Tensor, keys: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Some heads: (N, H * W, D) each, to the same shape."""
    scores = (queries * self.scale) @ keys.transpose(-2, -1)
    if self.use_rel_pos:
        scores = self.positions(scores, queries, self.rel_pos_h, self.rel_pos_w, size, size)
    return scores.softmax(dim=-1) @ values
