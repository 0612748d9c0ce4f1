"""Edge scores agree with TransformerLens's own attribution patching, which no one here wrote.

`transformer_lens.tools.analysis.attribution_patching` (version 4.3) scores edges by position, one prompt at a time,
with the gradient of the corrupted run and the difference towards the clean run: the engine's EAP with clean and
corrupted prompts exchanged. It has no grouped queries and one gradient step only.
"""

from __future__ import annotations

import pytest
import torch
from families import random_pairs, save_family
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, Node, attribution_patch

from knowledge_circuits.engine.attribution import attribute
from knowledge_circuits.engine.graph import Graph
from knowledge_circuits.engine.prompts import PromptPairs
from knowledge_circuits.engine.weights import decoder_from_bridge, load_decoder

POSITIONS = 7
FAMILIES = ["gpt2", "gpt-neox", "gpt-neox-sequential"]


def name(node: Node) -> str:
    """TransformerLens's node under the engine's name."""
    if node.kind == "embed":
        return "input"
    if node.kind == "logits":
        return "logits"
    if node.kind in ("mlp_out", "mlp_in"):
        return f"m{node.layer}"
    head = f"a{node.layer}.h{node.head}"
    return head if node.kind == "attn_head_out" else f"{head}<{node.kind[0]}>"


def by_position(folder: str, pairs: PromptPairs, graph: Graph) -> Tensor:
    """TransformerLens's mean scores [p, u, v] over pairs of POSITIONS tokens, under the engine's sign."""
    bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    rows = {node: row for row, node in enumerate(graph.layout.sources)}
    columns = {node: column for column, node in enumerate(graph.layout.targets)}
    scores = torch.zeros(POSITIONS, *graph.scores.shape, dtype=torch.float64)
    for clean, corrupted, (right, wrong) in zip(pairs.clean, pairs.corrupted, pairs.labels, strict=True):

        def loss(logits: Tensor, right: int = right, wrong: int = wrong) -> Tensor:
            return logits[0, -1, wrong] - logits[0, -1, right]

        # "Clean" is where the difference points to and "corrupt" where the gradient is taken.
        result = attribution_patch(
            bridge,
            torch.tensor([list(corrupted)]),
            torch.tensor([list(clean)]),
            loss,
            EdgeAttributionConfig(granularity="edge"),
        )
        for (source, target), score in result.edge_scores.items():
            scores[source.position, rows[name(source)], columns[name(target)]] += score / len(pairs)
    return scores


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_family(tmp_path_factory.mktemp("models") / request.param, request.param))


@pytest.fixture(scope="module")
def pairs() -> PromptPairs:
    drawn = random_pairs((POSITIONS, POSITIONS))
    return PromptPairs(
        [pair.clean_ids for pair in drawn],
        [pair.corrupted_ids for pair in drawn],
        [pair.label_ids for pair in drawn],
        spans=[SPANS for _ in drawn],
    )


#: Every position is a span of its own.
SPANS = {f"position {position}": (position, position + 1) for position in range(POSITIONS)}


def test_scores_agree_position_by_position_and_summed(checkpoint: str, pairs: PromptPairs) -> None:
    graph = attribute(load_decoder(checkpoint), pairs, "EAP", by_span=True)
    expected = by_position(checkpoint, pairs, graph)
    assert graph.span_scores is not None and graph.spans == tuple(SPANS)
    assert (graph.span_scores.double() - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (graph.scores.double() - expected.sum(0)).abs().max() < 1e-5 * expected.sum(0).abs().max()


def test_weights_read_from_the_bridge_itself_give_the_same_scores(checkpoint: str, pairs: PromptPairs) -> None:
    bridge = TransformerBridge.boot_transformers(checkpoint, device="cpu", dtype=torch.float32)
    scores = attribute(decoder_from_bridge(bridge), pairs, "EAP").scores
    torch.testing.assert_close(scores, attribute(load_decoder(checkpoint), pairs, "EAP").scores)
