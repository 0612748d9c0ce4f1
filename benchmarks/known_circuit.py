"""A small transformer with a known circuit, its weights set by hand (the idea of InterpBench, arXiv 2407.14494).

The model continues [... A B ... A] with B. Its induction circuit has five edges:

    input -> a0.h1<v>      a previous-token head writes the token before each position
    a0.h1 -> a1.h2<k>      K-composition: the induction head looks for positions that follow the present token
    input -> a1.h2<q>
    input -> a1.h2<v>      it copies the token that it finds
    a1.h2 -> logits

All other heads and the MLPs do nothing for the task. They have random weights and write to dimensions that only they
read, and with `leak` a little to all dimensions: their outputs differ between prompts, so their edges get scores that
are not 0. `sharpness` is the score by which the induction head prefers the right position: the higher, the more its
softmax saturates, and the smaller are the gradients at its query and key.

The residual stream has a subspace each for the token, the position (which the model adds outside the graph), the
previous token, the output, and the rest. Shapes: b items, p positions, d d_model, e d_head, n vocabulary.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from knowledge_circuits.engine.decoder import MLP, Activation, Attention, Block, Decoder
from knowledge_circuits.engine.graph import Graph
from knowledge_circuits.engine.prompts import PromptPairs

EDGES = ("input->a0.h1<v>", "a0.h1->a1.h2<k>", "input->a1.h2<q>", "input->a1.h2<v>", "a1.h2->logits")

VOCABULARY, POSITIONS, LAYERS, HEADS, REST = 24, 12, 3, 4, 12
TOKEN, PLACE = slice(0, VOCABULARY), slice(VOCABULARY, VOCABULARY + POSITIONS)
PREVIOUS = slice(PLACE.stop, PLACE.stop + VOCABULARY)
OUTPUT = slice(PREVIOUS.stop, PREVIOUS.stop + VOCABULARY)
D_MODEL, D_HEAD = OUTPUT.stop + REST, VOCABULARY


@dataclass(frozen=True)
class Induction:
    """The model's parameters.

    Attributes:
        sharpness: attention score of the right position less that of the others, at a residual of norm 2.
        leak: standard deviation of what idle parts write to each dimension that the circuit reads, beside 1 elsewhere.
        seed: of the idle parts' weights.
    """

    sharpness: float = 8.0
    leak: float = 0.02
    seed: int = 0

    def decoder(self) -> Decoder:
        """Return the model in float64."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        writes = torch.full((D_MODEL,), self.leak, dtype=torch.float64)
        writes[OUTPUT.stop :] = 1.0
        blocks = []
        for layer in range(LAYERS):
            w_q, w_k, w_v = (normal(HEADS, D_MODEL, D_HEAD) / math.sqrt(D_MODEL) for _ in range(3))
            w_o = normal(HEADS, D_HEAD, D_MODEL) / math.sqrt(D_HEAD) * writes
            if layer == 0:
                w_q[1], w_k[1], w_v[1], w_o[1] = self._previous_token_head()
            if layer == 1:
                w_q[2], w_k[2], w_v[2], w_o[2] = self._induction_head()
            w_qkv = torch.cat([part.transpose(0, 1).flatten(1) for part in (w_q, w_k, w_v)], 1)
            zeros = w_qkv.new_zeros
            attention = Attention(w_qkv, zeros(w_qkv.shape[1]), w_o.flatten(0, 1), zeros(D_MODEL))
            w_in = normal(D_MODEL, 2 * D_HEAD) / math.sqrt(D_MODEL)
            w_out = normal(2 * D_HEAD, D_MODEL) / math.sqrt(2 * D_HEAD) * writes
            blocks.append(Block(attention, MLP(w_in, zeros(2 * D_HEAD), w_out, zeros(D_MODEL), gated=False)))
        embedding, unembedding = torch.zeros(VOCABULARY, D_MODEL).double(), torch.zeros(D_MODEL, VOCABULARY).double()
        positions = torch.zeros(POSITIONS, D_MODEL).double()
        embedding[:, TOKEN] = torch.eye(VOCABULARY).double()
        positions[:, PLACE] = torch.eye(POSITIONS).double()
        unembedding[OUTPUT] = torch.eye(VOCABULARY).double()
        return Decoder(
            n_heads=HEADS,
            n_kv_heads=HEADS,
            d_head=D_HEAD,
            activation=Activation.GELU,
            centred=False,
            parallel=False,
            norm_eps=1e-6,
            qk_norm_eps=0.0,
            max_positions=POSITIONS,
            embedding=embedding,
            positions=positions,
            inverse_frequencies=None,
            rotary_scale=1.0,
            blocks=tuple(blocks),
            unembedding=unembedding,
            unembedding_bias=torch.zeros(VOCABULARY).double(),
        )

    def _previous_token_head(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Position i attends to position i - 1 and writes its token to PREVIOUS."""
        q, k, v, o = _empty_head()
        index = torch.arange(POSITIONS)
        # Its attention reads positions alone, which are the same in every prompt; it may saturate.
        q[PLACE.start + index[1:], index[:-1]] = _gain(40.0)
        k[PLACE.start + index, index] = 1.0
        return q, k, _copy(v, TOKEN), _write(o, PREVIOUS, 1.0)

    def _induction_head(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The present token attends to the position whose previous token it is, and writes that token to OUTPUT."""
        q, k, v, o = _empty_head()
        return _copy(q, TOKEN, _gain(self.sharpness)), _copy(k, PREVIOUS), _copy(v, TOKEN), _write(o, OUTPUT, 2.0)

    def pairs(self, count: int, seed: int = 0) -> PromptPairs:
        """Return prompts [... A B ... A] of POSITIONS tokens; corrupted prompts have the form with other tokens."""
        generator = random.Random(seed)
        clean: list[list[int]] = []
        corrupted: list[list[int]] = []
        labels = []
        for _ in range(count):
            words = generator.sample(range(VOCABULARY), 2 * (POSITIONS - 1))
            place = generator.randrange(1, POSITIONS - 3)
            sides = [words[: POSITIONS - 1], words[POSITIONS - 1 :]]
            for side, prompts in zip(sides, (clean, corrupted), strict=True):
                prompts.append([*side, side[place]])
            labels.append((sides[0][place + 1], sides[1][place + 1]))
        return PromptPairs(clean, corrupted, labels)


def _gain(score: float) -> float:
    """Return the query's gain for an attention score of match over mismatch, at a residual of norm 2."""
    # A unit vector in a residual of norm 2 is sqrt(d) / 2 after the RMS norm; scores are divided by sqrt(e).
    return score * math.sqrt(D_HEAD) / (D_MODEL / 4)


def _empty_head() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    into = torch.zeros(3, D_MODEL, D_HEAD, dtype=torch.float64)
    return into[0], into[1], into[2], torch.zeros(D_HEAD, D_MODEL, dtype=torch.float64)


def _copy(weight: Tensor, subspace: slice, gain: float = 1.0) -> Tensor:
    """Read a subspace of the residual stream into the head's dimensions."""
    weight[subspace] = gain * torch.eye(VOCABULARY, dtype=torch.float64)
    return weight


def _write(weight: Tensor, subspace: slice, gain: float) -> Tensor:
    """Write the head's dimensions to a subspace, at the gain for a residual of norm 2."""
    weight[:, subspace] = gain * 2 / math.sqrt(D_MODEL) * torch.eye(VOCABULARY, dtype=torch.float64)
    return weight


def truth(graph: Graph) -> Tensor:
    """[E] which of the real edges, in row-major order, are the circuit's."""
    return torch.tensor([name in EDGES for name in graph.layout.edge_names])


def roc_area(scores: Graph) -> float:
    """Return the ROC area of |score| for the circuit's edges: 1 if they have the largest, 0.5 by chance.

    It is the probability that an edge of the circuit has a larger |score| than another edge, ties counting half.
    """
    inside = truth(scores).numpy()
    ranks = stats.rankdata(scores.scores[scores.layout.real_edges].abs().numpy())
    n, rest = int(inside.sum()), int((~inside).sum())
    return float((ranks[inside].sum() - n * (n + 1) / 2) / (n * rest))
