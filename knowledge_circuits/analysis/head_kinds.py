"""Mover, relation and mixture heads: whose tokens does a head carry the answer from?

A model's logit of one token is a sum over everything that writes to the last position. With the final norm's scale
frozen at its value in the run, each part's share is its direct logit attribution (DLA), and a head's own share splits
exactly over the source positions s from which it reads (without the output bias b_O):

    logit[t] = sum over parts x of  (x . u_t) r,         u_t = the unembedding's column, r = the norm's inverse scale
    DLA(head) = sum over s of  A[last, s] (v[s] W_O . u_t) r

What raises the logits of all tokens alike changes no probability. Kinds are therefore told from the logit minus the
mean logit of the vocabulary: u_t minus the mean of all columns (`without_vocabulary_mean`).

The subject part sums s over the subject's tokens, the relation part over the rest of the prompt, the start token in
neither. Averaged over a group's prompts, q = subject / relation tells the kind: a mover head where |q| > 10, a relation
head where |q| < 1/10, a mixture head between (Ou et al. 2025, section 5).

Shapes: b items, p positions, l layers, h heads, k key/value heads, g = h / k, e d_head, d d_model, n vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.forward import Trace

#: The |q| = |subject / relation| beyond which one part is taken as the whole of it.
DOMINANCE = 10.0


class HeadKind(StrEnum):
    """Where a head takes the answer's logit from."""

    MOVER = "mover"
    """The subject's tokens."""
    RELATION = "relation"
    """The relation's tokens."""
    MIXTURE = "mixture"
    """Both."""
    NONE = "none"
    """There is no ratio: both parts are exactly 0, or one is not a number (`original_ratio` can divide by 0)."""


def head_kinds(subject: ArrayLike, relation: ArrayLike) -> NDArray[np.str_]:
    """Return the kind of each head from its mean subject and relation parts, two arrays of one shape; see `HeadKind`.

    A relation part of 0 beside a subject part that is not makes a mover head.
    """
    from_subject, from_relation = np.abs(np.asarray(subject)), np.abs(np.asarray(relation))
    none = ((from_subject == 0) & (from_relation == 0)) | ~np.isfinite(from_subject + from_relation)
    mover = from_subject > DOMINANCE * from_relation
    relational = DOMINANCE * from_subject < from_relation
    choices = [str(kind) for kind in (HeadKind.NONE, HeadKind.MOVER, HeadKind.RELATION)]
    return np.select([none, mover, relational], choices, str(HeadKind.MIXTURE))


def without_vocabulary_mean(decoder: Decoder) -> Decoder:
    """Return the model with its unembedding's mean over the vocabulary subtracted: its logits have mean 0."""
    return replace(
        decoder,
        unembedding=decoder.unembedding - decoder.unembedding.mean(1, keepdim=True),
        unembedding_bias=decoder.unembedding_bias - decoder.unembedding_bias.mean(),
    )


def direct_logit_attribution(decoder: Decoder, trace: Trace, targets: Tensor) -> Tensor:
    """Return what each head adds to a token's logit at the last position, by the source position that it read.

    Args:
        trace: a forward pass of whole prompts (without a prefix).
        targets: [b] the token of each item whose logit it is.

    Returns:
        [b, l, h, p], of the logit before a soft cap. The scales of the final norm and of post-norms are the run's own.
    """
    # Columns of the unembedding are centred for a layer norm, so parts need not be.
    direction = decoder.unembedding[:, targets].T * trace.final_normalized.inverse_scale[:, -1]  # [b, d]
    heads = []
    for block, layer in zip(decoder.blocks, trace.layers, strict=True):
        received = direction if layer.attention_post is None else direction * layer.attention_post.inverse_scale[:, -1]
        b, n_kv, _, e = layer.heads.v.shape
        writes = (received @ block.attention.w_o.T).view(b, n_kv, -1, e)  # what a unit of each head's z adds
        per_value = (writes @ layer.heads.v.mT).flatten(1, 2)  # [b, h, p]
        heads.append(layer.pattern[:, :, -1] * per_value)
    return torch.stack(heads, 1)


class SourceParts(NamedTuple):
    """Two parts of every head, subject and relation, each [b, l, h]."""

    subject: Tensor
    relation: Tensor


def split_by_source(heads: Tensor, subject: Tensor) -> SourceParts:
    """Sum heads' parts of a logit over the subject's positions and over the relation's.

    Args:
        heads: [b, l, h, p].
        subject: [b, p] True at the subject's tokens. Position 0, the start token, is in neither part; all other
            positions are the relation's.
    """
    return SourceParts(*(torch.einsum("blhp,bp->blh", heads, mask.to(heads.dtype)) for mask in _masks(subject)))


def _masks(subject: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the subject's and the relation's tokens stand, [b, p] each."""
    relation = ~subject
    relation[:, 0] = False
    return subject, relation


@dataclass(frozen=True)
class VocabularySums:
    """The unembedding summed over the vocabulary: all that `original_ratio` needs of it.

    Attributes:
        weight: [d] the sum of W_U's columns, without the final norm.
        bias: the sum of b_U; 0 where there is none.
    """

    weight: Tensor
    bias: float

    @classmethod
    def of(cls, model: Any) -> VocabularySums:
        """Read a Hugging Face causal language model's output embedding."""
        head = model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        weight = head.weight.detach()
        total = weight.sum(0, dtype=torch.promote_types(weight.dtype, torch.float32)).to(weight.dtype)
        return cls(total, 0.0 if bias is None else float(bias.detach().double().sum()))


def original_ratio(decoder: Decoder, trace: Trace, subject: Tensor, sums: VocabularySums) -> SourceParts:
    """Return the original code's two ratios: a head's subject part and relation part over the whole.

    With H[s] = z[s] W_O, they are sum over the vocabulary of (sum over s in the part of A[last, s] H[s] W_U + b_U),
    divided by the sum over the vocabulary of (sum over all s of H[s] W_U + b_U). Against the exact split
    (`split_by_source`):

    - it takes z, a position's own attention output, where the head reads values v, so the parts do not sum to the
      head's output;
    - it sums over all tokens of the vocabulary, where only the answer's token matters: what raises every logit alike
      counts most, and it changes no probability;
    - b_U is added to each part and to the whole, though it is no head's output (GPT-2 and Llama have none);
    - the final norm is left out (its scale would cancel, the weights and, for a layer norm, the centring do not);
    - the whole is summed over positions without attention weights and can be near 0, so ratios can be of any size.

    Value biases stay in z here; the original's loader moves them into b_O first, which the sums leave out.

    Args:
        trace: a forward pass of whole prompts with `queries=None`.
        subject: [b, p] True at the subject's tokens.
        sums: of the model's own unembedding, which a `Decoder` no longer has.
    """
    b, p = subject.shape
    ratios = []
    for block, layer in zip(decoder.blocks, trace.layers, strict=True):
        if layer.z.shape[1] != p:
            raise ValueError("the original's ratio needs z at all positions: run forward with queries=None")
        writes = (block.attention.w_o @ sums.weight).view(decoder.n_heads, decoder.d_head)
        logits = torch.einsum("bphe,he->bhp", layer.z.view(b, p, decoder.n_heads, decoder.d_head), writes)
        whole = logits.sum(-1) + sums.bias  # [b, h]
        parts = ((layer.pattern[:, :, -1] * logits * mask[:, None]).sum(-1) + sums.bias for mask in _masks(subject))
        ratios.append(torch.stack([part / whole for part in parts]))  # [2, b, h]
    return SourceParts(*torch.stack(ratios, 2))
