"""How language models acquire new knowledge, seen from inside: knowledge circuits of any supported checkpoint.

    import knowledge_circuits as kc

    decoder, tokenizer = kc.load_model("models/SmolLM2-135M"), kc.load_tokenizer("models/SmolLM2-135M")
    pairs, unpaired = kc.PromptPairs.match_lengths(tokenizer, {"The capital of France is": "Paris", ...})
    scored = kc.attribute(decoder, pairs)                       # a score for every edge
    circuit = kc.prune(kc.top_n(scored, 5_000))                 # the strongest edges
    kc.evaluate(decoder, [circuit], pairs)[0].faithfulness

The names below are the public interface. Importing the package imports nothing else: a name's module, and with it
torch, is imported when the name is first used. The rooms (`models`, `engine`, `corpus`, `training`, `sweeps`,
`analysis`, `figures`, `report`) may change between versions.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from knowledge_circuits.engine.attribution import attribute as attribute
    from knowledge_circuits.engine.evaluation import evaluate as evaluate
    from knowledge_circuits.engine.evaluation import faithfulness_curve as faithfulness_curve
    from knowledge_circuits.engine.evaluation import standalone as standalone
    from knowledge_circuits.engine.graph import Graph as Graph
    from knowledge_circuits.engine.graph_files import read_graph as read_graph
    from knowledge_circuits.engine.graph_files import write_graph as write_graph
    from knowledge_circuits.engine.prompts import PromptPairs as PromptPairs
    from knowledge_circuits.engine.selection import prune as prune
    from knowledge_circuits.engine.selection import top_n as top_n
    from knowledge_circuits.engine.weights import load_decoder as load_model
    from knowledge_circuits.figures.circuit_graph import draw as draw
    from knowledge_circuits.models.tokenization import load_tokenizer as load_tokenizer

__version__ = "0.2.0"

#: Where each public name is defined: its module, and its name there.
_DEFINED = {
    "Graph": ("engine.graph", "Graph"),
    "PromptPairs": ("engine.prompts", "PromptPairs"),
    "attribute": ("engine.attribution", "attribute"),
    "draw": ("figures.circuit_graph", "draw"),
    "evaluate": ("engine.evaluation", "evaluate"),
    "faithfulness_curve": ("engine.evaluation", "faithfulness_curve"),
    "load_model": ("engine.weights", "load_decoder"),
    "load_tokenizer": ("models.tokenization", "load_tokenizer"),
    "prune": ("engine.selection", "prune"),
    "read_graph": ("engine.graph_files", "read_graph"),
    "standalone": ("engine.evaluation", "standalone"),
    "top_n": ("engine.selection", "top_n"),
    "write_graph": ("engine.graph_files", "write_graph"),
}

__all__ = [
    "Graph",
    "PromptPairs",
    "attribute",
    "draw",
    "evaluate",
    "faithfulness_curve",
    "load_model",
    "load_tokenizer",
    "prune",
    "read_graph",
    "standalone",
    "top_n",
    "write_graph",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _DEFINED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, defined = _DEFINED[name]
    value = getattr(import_module(f"{__name__}.{module}"), defined)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
