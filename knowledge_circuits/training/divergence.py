"""KL regularization: the model's predictions stay near those of a reference model.

With reference distribution q and the model's p over the next token, weight w, and the mean over the learned tokens of a
step,

    loss = cross entropy + w KL(q || p)

The reference is the starting model (Li and Hoiem 2016, arXiv 1606.09282) or the model at the end of the previous epoch,
which in the first epoch is the starting model as well; both as in Mousavi et al. (2026), arXiv 2601.03858. A reference
is a second copy of the model in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerState

from knowledge_circuits.files import InputError
from knowledge_circuits.training.data import IGNORED

#: The previous epoch's weights, saved with a checkpoint inside an epoch only so that training can go on from it.
PREVIOUS_EPOCH = "previous_epoch.pt"


@dataclass
class Reference:
    """A frozen model that predictions should stay near.

    Attributes:
        model: in evaluation mode.
        weight: of the divergence in the loss.
        follows: whether it becomes the trained model at the end of each epoch.
    """

    model: PreTrainedModel
    weight: float
    follows: bool = False

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)

    def divergence(self, logits: Tensor, inputs: Mapping[str, Any], labels: Tensor, tokens: Tensor | int) -> Tensor:
        """Return the weighted divergence: its sum over the learned tokens, divided by `tokens`.

        Args:
            logits: the trained model's, [b, p, n].
            labels: token ids, or IGNORED where nothing is learned [b, p].
            tokens: learned tokens of the optimizer step.
        """
        self.model.to(logits.device)
        with torch.no_grad():
            expected = self.model(**inputs, use_cache=False).logits
        counted = labels[:, 1:] != IGNORED
        own = logits[:, :-1][counted].float().log_softmax(dim=-1)
        reference = expected[:, :-1][counted].float().log_softmax(dim=-1)
        total = torch.nn.functional.kl_div(own, reference, reduction="sum", log_target=True)
        return self.weight * total / tokens


class FollowEpochs(TrainerCallback):
    """Makes the reference the trained model at the beginning of every epoch.

    Args:
        weights: gives the trained model's weights as those of an ordinary model.
    """

    def __init__(self, reference: Reference, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        self.reference = reference
        self._weights = weights

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        # Inside an epoch, where an interrupted run goes on, the checkpoint has brought them.
        if float(state.epoch or 0).is_integer():
            self._set(self._weights())

    def save(self, folder: Path, epoch: float) -> None:
        """Save the reference with a checkpoint inside an epoch; at an epoch's end it is the checkpoint itself."""
        if not float(epoch).is_integer():
            state = self.reference.model.state_dict()
            tied = self.reference.model.all_tied_weights_keys
            torch.save({name: state[name].cpu() for name in state if name not in tied}, folder / PREVIOUS_EPOCH)

    def load(self, folder: Path) -> None:
        """Load the reference of a checkpoint inside an epoch."""
        if (folder / PREVIOUS_EPOCH).exists():
            self._set(torch.load(folder / PREVIOUS_EPOCH, map_location="cpu", weights_only=True))

    def _set(self, weights: Mapping[str, Tensor]) -> None:
        missing, unexpected = self.reference.model.load_state_dict(dict(weights), strict=False)
        tied = set(self.reference.model.all_tied_weights_keys)
        if unexpected or set(missing) - tied:
            raise InputError(f"{PREVIOUS_EPOCH}: weights of another model ({[*unexpected, *missing][0]!r})")
