"""The least arithmetic that attribution and circuit evaluation need, as a formula over the model's shape.

Matrix products only (two operations per multiply-add); norms, softmax and non-linearities are left out. "Least" means:
no work for the positions in which clean and corrupted prompts begin alike (their keys and values are computed once),
in the last layer only what the last position needs, no gradients of parameters, no gradient below the first layer's
projections, and the sum over steps taken before a gradient is split by head. An EAP-IG score matrix then costs

    (m + 1) forward + m backward + one split by head + one difference per source + D G

where a backward pass through the activations costs what the forward pass does, with twice its attention part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """What the count depends on."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    gated: bool
    parallel: bool

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Read a Hugging Face configuration of one of the supported families."""
        heads = config.num_attention_heads
        kind, falcon = config.model_type, config.model_type == "falcon"
        names = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
        d_mlp = next((width for name in names if (width := getattr(config, name, None))), None)
        return cls(
            n_layers=config.num_hidden_layers,
            n_heads=heads,
            n_kv_heads=1 if falcon and config.multi_query else getattr(config, "num_key_value_heads", None) or heads,
            d_model=config.hidden_size,
            d_head=getattr(config, "head_dim", None) or config.hidden_size // heads,
            d_mlp=d_mlp or 4 * config.hidden_size,
            gated=kind not in ("gpt2", "phi", "gpt_neox", "gptj", "opt", "falcon"),
            parallel=kind in ("phi", "gptj")
            or (falcon and config.parallel_attn)
            or bool(getattr(config, "use_parallel_residual", False)),
        )

    @property
    def query_weights(self) -> int:
        return self.d_model * self.n_heads * self.d_head

    @property
    def key_value_weights(self) -> int:
        return 2 * self.d_model * self.n_kv_heads * self.d_head

    @property
    def output_weights(self) -> int:
        return self.n_heads * self.d_head * self.d_model

    @property
    def mlp_weights(self) -> int:
        return (3 if self.gated else 2) * self.d_model * self.d_mlp

    @property
    def layer_weights(self) -> int:
        return self.query_weights + self.key_value_weights + self.output_weights + self.mlp_weights

    @property
    def edges(self) -> int:
        """Edges of the computation graph."""
        earlier = [1 + layer * (self.n_heads + 1) for layer in range(self.n_layers + 1)]
        own = 0 if self.parallel else self.n_heads
        return sum((3 * self.n_heads + 1) * reads + own for reads in earlier[:-1]) + earlier[-1]

    @property
    def last_edges(self) -> int:
        """Edges of which only the last position counts: into the last layer's queries and MLP, and into `logits`."""
        earlier = 1 + (self.n_layers - 1) * (self.n_heads + 1)
        own = 0 if self.parallel else self.n_heads
        return (self.n_heads + 1) * earlier + own + 1 + self.n_layers * (self.n_heads + 1)

    def edge_sums(self, positions: int) -> int:
        """One multiply-add per edge, position and width."""
        return 2 * self.d_model * ((self.edges - self.last_edges) * positions + self.last_edges)


def forward_flop(shape: Shape, positions: int, shared: int = 0) -> int:
    """A forward pass of one prompt, unembedding left out (two columns of it matter).

    Args:
        positions: p, tokens of the prompt.
        shared: how many of its first positions are not computed (their keys and values are at hand).
    """
    new = positions - shared
    at_last = shape.query_weights + shape.output_weights + shape.mlp_weights
    weights = (shape.n_layers - 1) * shape.layer_weights * new + shape.key_value_weights * new + at_last
    return 2 * weights + _attention_flop(shape, positions, shared)


def _attention_flop(shape: Shape, positions: int, shared: int) -> int:
    """The part of `forward_flop` that is products with keys and with values."""
    # Each computed query position reads the keys up to its own; in the last layer only the last position's counts.
    reads = (shape.n_layers - 1) * sum(range(shared + 1, positions + 1)) + positions
    return 4 * shape.n_heads * shape.d_head * reads


def attribution_flop(shape: Shape, positions: int, steps: int, shared: int = 1) -> int:
    """EAP-IG scores of one prompt pair.

    Args:
        positions: p, tokens of each prompt.
        steps: m.
        shared: positions in which clean and corrupted prompts begin alike (at least the start token).
    """
    new = positions - shared
    forward = forward_flop(shape, positions, shared)
    attention = _attention_flop(shape, positions, shared)
    # No gradient with respect to the embedding is wanted, so layer 0's projections pass none on.
    below = 2 * (shape.query_weights + shape.key_value_weights) * new
    if shape.n_layers == 1:
        below = 2 * (shape.query_weights + shape.key_value_weights * new)
    backward = forward + attention - below
    by_head = 2 * shape.query_weights * (3 * shape.n_layers * new - (new - 1))
    differences = 2 * shape.output_weights * ((shape.n_layers - 1) * new + 1)
    shared_once = forward_flop(shape, shared) if shared else 0
    return (steps + 1) * forward + steps * backward + by_head + differences + shape.edge_sums(new) + shared_once


def circuit_flop(shape: Shape, positions: int, shared: int = 1) -> int:
    """One prompt pair through a circuit under patching: two forward passes and the sums along edges.

    In the circuit's run every query head has its own input, for keys and values too.
    """
    new = positions - shared
    ungrouped = 2 * shape.query_weights - shape.key_value_weights
    own_inputs = 2 * shape.n_layers * ungrouped * new
    shared_once = forward_flop(shape, shared) if shared else 0
    return 2 * forward_flop(shape, positions, shared) + own_inputs + shape.edge_sums(new) + shared_once
