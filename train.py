r"""Continual pre-training on synthetic biographies, with the Hugging Face Trainer.

    python train.py --model gpt2 --model_name_or_path openai-community/gpt2 --run first \
      --train_file data/entities_50000/train.jsonl --validation_file data/entities_50000/validation.jsonl \
      --learning_rate 1e-3 --lr_scheduler_type constant --num_train_epochs 25 \
      --save_strategy epoch --eval_strategy epoch

`python train.py flags.json` reads the same flags from a file; `accelerate launch train.py ...` runs on several GPUs or
machines. Interrupted, the same command goes on from the newest checkpoint. `--probe_file` names people whose
facts are probed during training, or questions about the documents. `--lora_rank`, `--adaptive_exposure`,
`--annotate_entities`, `--kl_start` and `--kl_previous` are training strategies.

`--help` lists this project's flags on model, data and probes first, then the Trainer's, those on the run, the
strategies, and last the bounds on files.
"""

from __future__ import annotations

import sys

from knowledge_circuits.command_line import run_program
from knowledge_circuits.training.flags import answer_without_torch


def main() -> None:
    if answer_without_torch(sys.argv[1:], __doc__):
        return
    from knowledge_circuits.training.arguments import parse_arguments
    from knowledge_circuits.training.probes import ProbeArguments
    from knowledge_circuits.training.run import Flags, evaluate, train
    from knowledge_circuits.training.strategies import StrategyArguments

    flags = Flags(*parse_arguments(sys.argv[1:], [ProbeArguments, StrategyArguments], __doc__))
    if flags.training.only_evaluates:
        print(", ".join(f"{name} {value:.4f}" for name, value in evaluate(flags).items()))
        return
    outcome = train(flags)
    if flags.training.process_index == 0:
        state = "trained to" if outcome.trained else "already finished at"
        print(f"{outcome.run.path}: {state} step {outcome.step}; checkpoints in {outcome.run.checkpoints_folder}")


if __name__ == "__main__":
    run_program(main)
