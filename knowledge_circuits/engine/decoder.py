"""A decoder's weights, alike for every architecture, in the form in which the closed form needs them.

`load_decoder` reads a Hugging Face checkpoint through TransformerLens 4's `TransformerBridge`, which names the weights
of every family alike, and folds each norm's scale and shift into the projections that read it:

    W' = diag(w) W  (columns centred for a layer norm),    b' = b + W^T b_norm,    so    q = xhat W' + b'

with xhat = (x - mean x) r for a layer norm, x r for an RMS norm. The result is compared with the Hugging Face
model's own logits on a probe batch; a difference beyond tolerance is an error, never a silently wrong circuit.

Shapes: d d_model, h query heads, k key/value heads, e d_head, f MLP width, n vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class Activation(StrEnum):
    """The MLP non-linearities whose derivatives the backward pass knows."""

    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    SILU = "silu"
    RELU = "relu"


@dataclass(frozen=True)
class Attention:
    """One layer's attention with the norm folded in.

    Attributes:
        w_qkv: [d, (h + 2k) e], queries then keys then values, heads side by side.
        b_qkv: [(h + 2k) e], 0 where the model has none.
        w_o: [h e, d], the heads one below the other.
        b_o: [d], 0 where the model has none.
        q_norm, k_norm: [e], the scale of a query/key RMS norm (Qwen3); None where there is none.
    """

    w_qkv: Tensor
    b_qkv: Tensor
    w_o: Tensor
    b_o: Tensor
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


@dataclass(frozen=True)
class MLP:
    """One layer's MLP with the norm folded in.

    Attributes:
        w_in: [d, f]; for a gated MLP [d, 2f], the gate then the up projection.
        b_in: [f] or [2f].
        w_out: [f, d].
        b_out: [d].
        gated: whether act(gate) * up is taken rather than act(pre).
    """

    w_in: Tensor
    b_in: Tensor
    w_out: Tensor
    b_out: Tensor
    gated: bool


@dataclass(frozen=True)
class Block:
    """One layer; what its two parts read is the decoder's matter (`Decoder.parallel`).

    Attributes:
        attention, mlp: its weights.
    """

    attention: Attention
    mlp: MLP


@dataclass(frozen=True)
class Decoder:
    """A decoder-only language model as the engine sees it.

    Attributes:
        n_heads: h, the query heads of a layer.
        n_kv_heads: k, its key/value heads; each serves h / k query heads.
        d_head: e, the width of a head.
        activation: the MLPs' non-linearity.
        centred: layer norm (True) or RMS norm (False).
        parallel: attention and MLP read the same residual (Phi, GPT-NeoX).
        norm_eps, qk_norm_eps: the epsilons of the residual's norms and of the query/key norms.
        max_positions: the longest prompt that the model takes as a full-attention decoder.
        embedding: [n, d] token embedding.
        positions: [context, d] learned positional embedding, or None.
        inverse_frequencies: [rotary_dim / 2] in float64, or None without rotary positions.
        rotary_scale: factor on cos and sin, from the kind of rotary scaling; 1 for all kinds that are taken so far.
        blocks: the layers.
        unembedding: [d, n] with the final norm folded in.
        unembedding_bias: [n], 0 where there is none and the final norm has no shift.
    """

    n_heads: int
    n_kv_heads: int
    d_head: int
    activation: Activation
    centred: bool
    parallel: bool
    norm_eps: float
    qk_norm_eps: float
    max_positions: int
    embedding: Tensor
    positions: Tensor | None
    inverse_frequencies: Tensor | None
    rotary_scale: float
    blocks: tuple[Block, ...]
    unembedding: Tensor
    unembedding_bias: Tensor

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        return self.embedding.shape[1]

    @property
    def d_vocab(self) -> int:
        return self.unembedding.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight with a name that a reader recognizes."""
        yield "the token embedding", self.embedding
        if self.positions is not None:
            yield "the positional embedding", self.positions
        for layer, block in enumerate(self.blocks):
            for part in (block.attention, block.mlp):
                for name, value in vars(part).items():
                    if isinstance(value, Tensor):
                        yield f"layer {layer}'s {type(part).__name__.lower()} {name}", value
        yield "the unembedding", self.unembedding
        yield "the unembedding bias", self.unembedding_bias
