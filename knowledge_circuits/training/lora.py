"""LoRA: low-rank adapters are trained instead of the weights (Hu et al. 2021, arXiv 2106.09685), by the package peft.

The adapters are put into the model's layers, so the model stays the one that it was for probes and evaluation. A
checkpoint holds the merged weights, W + (alpha / rank) B A, as an ordinary model, so that every program reads it like
any other, and the adapter alone in `adapter/`, from which training goes on.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from knowledge_circuits.files import InputError, first_line
from knowledge_circuits.models.loading import record_base, shared_modules
from knowledge_circuits.training.strategies import StrategyArguments

#: The folder of a checkpoint that holds the adapter.
ADAPTER = "adapter"


def add_adapter(model: PreTrainedModel, strategy: StrategyArguments, base: str | None, seed: int) -> Any:
    """Freeze a model's weights and put adapters into its layers.

    Args:
        model: changed in place.
        base: the folder or hub name of the model, which the adapter's configuration names.
        seed: of the adapters' weights.

    Returns:
        peft's view of the model, which saves and loads the adapter.

    Raises:
        InputError: peft is not installed, no layer has one of the given names, or one that has it shares its weights
            with another, so that a checkpoint, in which they are one, could not hold what is learned.
    """
    try:
        import peft
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        raise InputError("--lora_rank needs the package peft (pip install peft)") from None
    names: Any = strategy.lora_modules if strategy.lora_modules != ["all-linear"] else "all-linear"
    rank = strategy.lora_rank or 1
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=strategy.lora_alpha or 2 * rank,
        lora_dropout=strategy.lora_dropout,
        target_modules=names,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),  # GPT-2's are [in, out]
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks the model by a name that transformers changed
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # refused below
            torch.manual_seed(seed)
            adapter = peft.get_peft_model(model, config)
    except (ValueError, TypeError) as error:  # no such layers, or layers of a kind that has no adapter
        raise InputError(f"--lora_modules {' '.join(strategy.lora_modules)}: {first_line(error)}") from error
    for pair in shared_modules(model):
        if any(isinstance(model.get_submodule(name), BaseTunerLayer) for name in pair):
            raise InputError(
                f"--lora_modules {' '.join(strategy.lora_modules)}: {' and '.join(pair)} of this model share their "
                "weights, so an adapter of either cannot be merged; name other layers, or train without --lora_rank"
            )
    return adapter


def merged_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights of a model with adapters as those of one without; its own are not changed."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted: dict[str, Any] = {name: one for name, one in model.named_modules() if isinstance(one, BaseTunerLayer)}
    weights = {}
    for name, weight in model.state_dict().items():
        layer, _, rest = name.partition(".base_layer.")
        if rest:
            delta = adapted[layer].get_delta_weight("default") if rest == "weight" else 0
            weights[f"{layer}.{rest}"] = (weight + delta).detach()
        elif not any(name.startswith(f"{other}.") for other in adapted):
            weights[name] = weight
    return weights


def save_adapter(adapter: Any, folder: Path) -> None:
    """Save the adapter alone, with the digest of its base model; the same adapter gives the same bytes."""
    config = adapter.peft_config["default"]
    config.target_modules = sorted(config.target_modules)  # a set, whose order changes with the hash seed
    adapter.save_pretrained(str(folder / ADAPTER))
    record_base(folder / ADAPTER, config.base_model_name_or_path)
    (folder / ADAPTER / "README.md").unlink(missing_ok=True)  # a form to fill in


def load_adapter(adapter: Any, folder: Path) -> None:
    """Load the adapter of a checkpoint into the model that is trained."""
    import peft

    weights = peft.load_peft_weights(str(folder / ADAPTER), device="cpu")
    result: Any = peft.set_peft_model_state_dict(adapter, weights)
    if result.unexpected_keys:
        raise InputError(f"{folder / ADAPTER}: the adapter has other layers than --lora_modules names")
