"""One prompt through one model: what each layer would answer, what each component writes, where heads look.

The view keeps what its figures need and nothing of the model: the logit lens at the last position (top tokens, rank and
probability of the answer), every component's share of the answer's logit with the tokens that it raises most, and all
attention patterns. A component's tokens are those of its output times the unembedding, with the final norm's scale
frozen as in `head_kinds`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from knowledge_circuits.analysis import timeline
from knowledge_circuits.analysis.circuit_settings import main_setting
from knowledge_circuits.analysis.components import GroupPrompts, circuit_data_file, has_circuit_data, read_group_prompts
from knowledge_circuits.analysis.head_kinds import direct_logit_attribution, split_by_source
from knowledge_circuits.analysis.logit_lens import lens_logits, logit_lens, residual_points
from knowledge_circuits.engine.decoder import Decoder
from knowledge_circuits.engine.forward import Trace, embed, forward
from knowledge_circuits.engine.weights import load_decoder
from knowledge_circuits.files import InputError
from knowledge_circuits.models.loading import no_loading_bars, weight_files
from knowledge_circuits.models.tokenization import load_tokenizer
from knowledge_circuits.runs import Run
from knowledge_circuits.study import Group

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TopTokens:
    """The highest-scoring tokens of something, best first: their texts and their scores."""

    texts: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class ComponentView:
    """What one component writes at the last position.

    Attributes:
        name: `input` (embeddings), `a<layer>.h<head>` or `m<layer>`.
        answer: its share of the answer's logit.
        raised: the tokens whose logits it raises most, with its shares of them.
    """

    name: str
    answer: float
    raised: TopTokens


@dataclass(frozen=True)
class PromptView:
    """One prompt in one model.

    Attributes:
        where: which checkpoint, in words ("epoch 18").
        tokens: p texts, the start token first.
        subject: the positions of the subject's tokens.
        answer: the text of the answer's first token.
        layers: L + 1 points of the lens: the tokens that lead, with their probabilities.
        rank, prob: [l + 1] of the answer at the last position (rank 0 is best).
        subject_rank: [l + 1] the answer's best rank over the subject's positions.
        components: every component, by size of its share of the answer's logit.
        subject_part: [l, h] the heads' shares of the answer's logit that come from the subject's tokens.
        patterns: [l, h, p, p] attention, queries then keys.
    """

    where: str
    tokens: tuple[str, ...]
    subject: tuple[int, ...]
    answer: str
    layers: tuple[TopTokens, ...]
    rank: NDArray[np.int64]
    prob: Floats
    subject_rank: NDArray[np.int64]
    components: tuple[ComponentView, ...]
    subject_part: Floats
    patterns: Floats

    @property
    def text(self) -> str:
        """The prompt without its start token."""
        return "".join(self.tokens[1:])

    def strongest_head(self) -> tuple[int, int]:
        """Layer and head of the head that takes most of the answer from the subject's tokens."""
        return divmod(int(self.subject_part.argmax()), self.subject_part.shape[1])


def view_prompt(
    run: Run, group: Group, number: int = 0, epoch: float = float("inf"), top: int = 5, data_file: str | None = None
) -> PromptView | None:
    """View one circuit prompt of a group in the checkpoint nearest to an epoch.

    Args:
        number: which of the group's prompts, from 0.
        epoch: wanted epoch; `inf` means the last checkpoint.
        top: how many tokens to keep of each layer and component.
        data_file: the circuit data, `{task}` for each task; None means those that the run's configuration tells of.

    Returns:
        The view; None where the run has no circuits, weights or circuit data.
    """
    setting = main_setting(run)
    if setting is None:
        return None
    when = timeline.epochs(run)
    step = timeline.nearest_step(when, epoch)
    (checkpoint,) = [checkpoint for checkpoint in run.checkpoints() if checkpoint.step == step]
    data_file = data_file or circuit_data_file(run, setting)
    if not has_circuit_data(data_file) or not weight_files(checkpoint.path):
        return None
    tokenizer = load_tokenizer(checkpoint.path)
    prompts = read_group_prompts(data_file, tokenizer, setting.circuit_n, [group])
    with no_loading_bars():
        decoder = load_decoder(checkpoint.path)
    if not 0 <= number < len(prompts.pairs):
        raise InputError(f"{group} has {len(prompts.pairs)} prompts, numbered from 0; there is no {number}")
    return _view(decoder, tokenizer, prompts, number, f"epoch {when[step]:g}", top)


@torch.no_grad()
def _view(
    decoder: Decoder, tokenizer: PreTrainedTokenizerBase, prompts: GroupPrompts, number: int, where: str, top: int
) -> PromptView:
    ids = torch.tensor([list(prompts.pairs.clean[number])], device=decoder.device)
    target = torch.tensor([prompts.pairs.labels[number][0]], device=decoder.device)
    subject = prompts.subject_mask(torch.tensor([number]), ids.shape[1]).to(decoder.device)
    trace = forward(decoder, embed(decoder, ids), queries=None, keep_residuals=True)
    lens = logit_lens(decoder, trace, target, subject)
    heads = split_by_source(direct_logit_attribution(decoder, trace, target), subject)
    points = torch.stack([point[0, -1] for point in residual_points(trace)])
    return PromptView(
        where=where,
        tokens=tuple(_texts(tokenizer, ids[0].tolist())),
        subject=tuple(subject[0].nonzero()[:, 0].tolist()),
        answer=_texts(tokenizer, target.tolist())[0],
        layers=tuple(_top(tokenizer, lens_logits(decoder, points).softmax(-1), top)),
        rank=lens.rank[0].cpu().numpy(),
        prob=lens.prob[0].double().cpu().numpy(),
        subject_rank=lens.subject_rank[0].cpu().numpy(),
        components=_components(decoder, tokenizer, trace, target, top),
        subject_part=heads.subject[0].double().cpu().numpy(),
        patterns=torch.stack([layer.pattern[0] for layer in trace.layers]).double().cpu().numpy(),
    )


def _components(
    decoder: Decoder, tokenizer: PreTrainedTokenizerBase, trace: Trace, target: Tensor, top: int
) -> tuple[ComponentView, ...]:
    """Return every component's share of the answer's logit and the tokens that it raises most."""
    names, outputs = ["input"], [trace.residuals[0][:, -1]]
    for index, (block, layer) in enumerate(zip(decoder.blocks, trace.layers, strict=True)):
        z = layer.z[0, -1].view(decoder.n_heads, 1, decoder.d_head)
        outputs.append((z @ block.attention.w_o.view(decoder.n_heads, decoder.d_head, -1))[:, 0])
        outputs.append(layer.mlp_output[:, -1])
        names += [f"a{index}.h{head}" for head in range(decoder.n_heads)] + [f"m{index}"]
    shares = torch.cat(outputs) * trace.final_normalized.inverse_scale[0, -1] @ decoder.unembedding  # [u, n]
    answers = shares[:, target[0]].tolist()
    raised = _top(tokenizer, shares, top)
    views = [ComponentView(*parts) for parts in zip(names, answers, raised, strict=True)]
    return tuple(sorted(views, key=lambda component: -abs(component.answer)))


def _top(tokenizer: PreTrainedTokenizerBase, scores: Tensor, count: int) -> list[TopTokens]:
    """Return the best `count` tokens of each row of scores [m, n]."""
    values, ids = scores.float().topk(min(count, scores.shape[1]), -1)
    return [
        TopTokens(tuple(_texts(tokenizer, row)), tuple(best))
        for row, best in zip(ids.tolist(), values.tolist(), strict=True)
    ]


def _texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return each token's text with its leading space, which SentencePiece marks and decoding alone would drop."""
    plain = tokenizer.batch_decode([[token] for token in ids], clean_up_tokenization_spaces=False)
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    return [
        f" {text}" if str(piece).startswith("\u2581") and not text.startswith(" ") else text
        for text, piece in zip(plain, pieces, strict=True)
    ]
