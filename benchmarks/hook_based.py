"""Attribution and circuit evaluation the hook-based way, on TransformerLens' `TransformerBridge`: what the engine is
measured against, and in the tests an oracle that shares no code with it.

This is how EAP-IG (Hanna et al. 2024) and its kin work. The model is asked for an input per head for queries, keys and
values and for an output per head, so that every edge's ends have a hook. Hooks collect the outputs' differences
between the corrupted and the clean run; in each interpolation step, backward hooks multiply the gradient at every
input with them. A circuit is run by hooks that, at every input, put the corrupted run's outputs in place of this run's
along the edges outside the circuit.

Shapes: b items, p positions, h heads, d width of the residual stream, u sources, v targets. The prompts of a batch are
of equal length. Grouped-query models must be given with their key and value heads repeated (`ungrouped`): the hooks
are one per key/value head, the graph's targets one per query head.

`attribute` and `evaluate` take TransformerLens 2's `HookedTransformer` as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Hook = tuple[str, Callable[..., Tensor | None]]


def boot(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, parameter_gradients: bool = False
) -> TransformerBridge:
    """A bridge with per-head inputs and outputs switched on.

    Args:
        model: with eager attention, in the dtype and on the device to compute with.
        tokenizer: loaded from a folder (the bridge wants its name).
        name: the folder the bridge reads the configuration from.
        parameter_gradients: leave the parameters' gradients on, as EAP-IG's code does; they cost time and memory and
            are not used.
    """
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        name, hf_model=model, tokenizer=tokenizer, device=model.device, dtype=model.dtype
    )
    bridge.eval()
    model.requires_grad_(parameter_gradients)
    bridge.set_use_attn_result(True)
    bridge.set_use_split_qkv_input(True)
    bridge.set_use_hook_mlp_in(True)
    return bridge


def ungrouped(model: PreTrainedModel) -> PreTrainedModel:
    """The same function with key and value weights repeated, one per query head (Llama, Mistral, Qwen)."""
    config = type(model.config).from_dict(model.config.to_dict())
    repeats = config.num_attention_heads // config.num_key_value_heads
    config.num_key_value_heads = config.num_attention_heads
    state = dict(model.state_dict())
    for name, weight in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            heads = weight.unflatten(0, (config.num_attention_heads // repeats, -1))
            state[name] = heads.repeat_interleave(repeats, 0).flatten(0, 1)
    with torch.random.fork_rng(), torch.device(model.device):
        twin = AutoModelForCausalLM.from_config(config, dtype=model.dtype, attn_implementation="eager")
    twin.load_state_dict(state)
    return twin.eval()


def _source_hooks(bridge: TransformerBridge) -> list[tuple[str, int, int]]:
    """(hook name, first source, number of sources), in graph order."""
    heads = bridge.cfg.n_heads
    hooks = [("hook_embed", 0, 1)]
    for layer in range(bridge.cfg.n_layers):
        start = 1 + layer * (heads + 1)
        hooks += [
            (f"blocks.{layer}.attn.hook_result", start, heads),
            (f"blocks.{layer}.hook_mlp_out", start + heads, 1),
        ]
    return hooks


def _target_hooks(bridge: TransformerBridge) -> list[tuple[str, int, int, int]]:
    """(hook name, first target, number of targets, number of sources that these read), in graph order."""
    heads, layers = bridge.cfg.n_heads, bridge.cfg.n_layers
    hooks = []
    for layer in range(layers):
        start, earlier = layer * (3 * heads + 1), 1 + layer * (heads + 1)
        for part, letter in enumerate("qkv"):
            name = f"blocks.{layer}.attn.hook_{letter}_input"
            if name not in bridge.hook_dict:  # HookedTransformer has it in the block
                name = f"blocks.{layer}.hook_{letter}_input"
            hooks.append((name, start + part * heads, heads, earlier))
        own = 0 if getattr(bridge.cfg, "parallel_attn_mlp", False) else heads
        hooks.append((f"blocks.{layer}.hook_mlp_in", start + 3 * heads, 1, earlier + own))
    last = f"blocks.{layers - 1}.hook_resid_post"
    return [*hooks, (last, layers * (3 * heads + 1), 1, 1 + layers * (heads + 1))]


def _by_node(activation: Tensor) -> Tensor:
    """[b, p, d] or [b, p, h, d] as [b, p, nodes, d]."""
    return activation[:, :, None] if activation.ndim == 3 else activation


def _collecting(bridge: TransformerBridge, into: Tensor, sign: int) -> list[Hook]:
    """Hooks that add every source's output, times a sign, to [b, p, u, d]."""

    def hook_at(first: int, count: int) -> Callable[..., None]:
        def add(activation: Tensor, hook: object) -> None:
            into[:, :, first : first + count] += sign * _by_node(activation.detach())

        return add

    return [(name, hook_at(first, count)) for name, first, count in _source_hooks(bridge)]


def _empty_differences(bridge: TransformerBridge, ids: Tensor) -> Tensor:
    heads, layers = bridge.cfg.n_heads, bridge.cfg.n_layers
    sources = 1 + layers * (heads + 1)
    return torch.zeros(*ids.shape, sources, bridge.cfg.d_model, device=ids.device, dtype=bridge.cfg.dtype)


def attribute(
    bridge: TransformerBridge, clean_ids: Tensor, corrupted_ids: Tensor, label_ids: Tensor, steps: int = 5
) -> Tensor:
    """EAP-IG scores of one batch.

    Args:
        clean_ids: token ids [b, p].
        corrupted_ids: token ids [b, p].
        label_ids: the clean and the corrupted label, [b, 2].
        steps: m; the gradient is the mean over k = 1..m of the runs from corrupted + k/m (clean - corrupted).

    Returns:
        scores [u, v], the mean over the batch.
    """
    differences = _empty_differences(bridge, clean_ids)
    embeddings: list[Tensor] = []
    keep: Hook = ("hook_embed", lambda activation, hook: embeddings.append(activation.detach().clone()))
    with torch.no_grad():
        bridge.run_with_hooks(corrupted_ids, fwd_hooks=[*_collecting(bridge, differences, +1), keep])
        bridge.run_with_hooks(clean_ids, fwd_hooks=[*_collecting(bridge, differences, -1), keep])
    corrupted, clean = embeddings

    targets = _target_hooks(bridge)
    scores = torch.zeros(differences.shape[2], targets[-1][1] + 1, device=clean_ids.device, dtype=differences.dtype)
    backward = [(name, _scoring(differences, scores, *place)) for name, *place in targets]
    items = torch.arange(len(clean_ids), device=clean_ids.device)
    for k in range(1, steps + 1):
        start = (corrupted + k / steps * (clean - corrupted)).requires_grad_()
        replace: Hook = ("hook_embed", lambda activation, hook, start=start: start)
        with bridge.hooks(fwd_hooks=[replace], bwd_hooks=backward):
            logits = bridge(clean_ids)[:, -1]
            loss = -(logits[items, label_ids[:, 0]] - logits[items, label_ids[:, 1]]).sum()
            loss.backward()
    bridge.zero_grad()
    return scores / (steps * len(clean_ids))


def _scoring(differences: Tensor, scores: Tensor, first: int, count: int, sources: int) -> Callable[..., None]:
    """A backward hook that adds <difference of source u, gradient at target v> to the scores."""

    def add(gradient: Tensor, hook: object) -> None:
        product = torch.einsum("bpud,bpvd->uv", differences[:, :, :sources], _by_node(gradient))
        scores[:sources, first : first + count] += product

    return add


def evaluate(
    bridge: TransformerBridge, clean_ids: Tensor, corrupted_ids: Tensor, label_ids: Tensor, circuit: Tensor
) -> Tensor:
    """Logit differences of the clean run, the corrupted run and the circuit under patching, [3, b].

    Args:
        clean_ids: token ids [b, p].
        corrupted_ids: token ids [b, p].
        label_ids: the clean and the corrupted label, [b, 2].
        circuit: which edges are in, [u, v] bool.
    """
    differences = _empty_differences(bridge, clean_ids)
    outside = (~circuit).to(differences.dtype)
    with torch.no_grad():
        corrupted = bridge.run_with_hooks(corrupted_ids, fwd_hooks=_collecting(bridge, differences, +1))
        clean = bridge(clean_ids)
        patches = [(name, _patching(differences, outside, *place)) for name, *place in _target_hooks(bridge)]
        # Each source's output is subtracted when this run has it, which is before any target reads it.
        hooks = [*_collecting(bridge, differences, -1), *patches]
        patched = bridge.run_with_hooks(clean_ids, fwd_hooks=hooks)
    chosen = torch.stack([run[:, -1].gather(1, label_ids) for run in (clean, corrupted, patched)])
    return chosen[..., 0] - chosen[..., 1]


def _patching(differences: Tensor, outside: Tensor, first: int, count: int, sources: int) -> Callable[..., Tensor]:
    """A hook that adds the corrupted run's outputs minus this run's along the edges outside the circuit."""

    def patch(activation: Tensor, hook: object) -> Tensor:
        edges = outside[:sources, first : first + count]
        update = torch.einsum("bpud,uv->bpvd", differences[:, :, :sources], edges)
        return activation + update.view_as(activation)

    return patch
