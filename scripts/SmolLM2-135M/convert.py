"""Turn a GGUF file (SmolLM2, Gemma 3) into an ordinary Hugging Face checkpoint folder.

A model that transformers loads from GGUF refuses `save_pretrained` (its configuration still says "quantized"), so its
dequantized state goes into a fresh model whose configuration has no `quantization_config`. The weights stay float32:
that holds the dequantized Q4_1 values exactly, and it is what training and circuits use on a CPU. Before the folder
takes its name, the saved model is loaded again and must give the same logits as the GGUF model.

    python scripts/SmolLM2-135M/convert.py SmolLM2-135M-Instruct.Q4_1.gguf models/SmolLM2-135M
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from knowledge_circuits.command_line import run_program
from knowledge_circuits.files import InputError

QUESTION = "The capital of France is"


def load_gguf(file: Path) -> tuple[PreTrainedModel, AutoTokenizer]:
    """The dequantized model (float32) and the tokenizer that a GGUF file holds."""
    if not file.is_file():
        raise InputError(f"{file}: no such GGUF file; prepare.sh of the model fetches it")
    model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def ordinary_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A model with the same weights whose configuration says nothing of quantization."""
    settings = model.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path"):
        settings.pop(key, None)
    copy = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


@torch.no_grad()
def greedy_answer(model: PreTrainedModel, tokenizer: AutoTokenizer) -> tuple[torch.Tensor, str]:
    """The logits [p, vocabulary] of a question, and the question with ten greedy tokens behind it."""
    prompt = tokenizer(QUESTION, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=10, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return model(**prompt).logits[0], tokenizer.decode(answer[0], skip_special_tokens=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path, help="the GGUF file")
    parser.add_argument("folder", type=Path, help="the checkpoint folder to make")
    arguments = parser.parse_args()

    if arguments.folder.exists():
        raise InputError(f"{arguments.folder} is there already; remove it to convert again")
    quantized, tokenizer = load_gguf(arguments.gguf)
    partial = arguments.folder.with_name(f".{arguments.folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    ordinary_copy(quantized).save_pretrained(partial)
    tokenizer.save_pretrained(partial)

    saved = AutoModelForCausalLM.from_pretrained(partial, dtype=torch.float32)
    expected, _ = greedy_answer(quantized, tokenizer)
    logits, answer = greedy_answer(saved, AutoTokenizer.from_pretrained(partial))
    if not torch.allclose(logits, expected, atol=1e-4):
        raise InputError(
            f"{partial}: the saved model's logits differ from the GGUF model's; the folder was not renamed"
        )
    partial.rename(arguments.folder)
    print(f"{arguments.folder}: {saved.num_parameters() / 1e6:.1f}M parameters in float32; it says: {answer!r}")


if __name__ == "__main__":
    run_program(main)
