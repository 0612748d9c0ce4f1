"""Make a small model's untrained start: a tokenizer learned from the corpus, and a GPT-2 with random weights."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from knowledge_circuits.command_line import positive, run_program
from knowledge_circuits.corpus.folder import DataFolder, content_flags, data_parser
from knowledge_circuits.corpus.other_corpora import read_texts
from knowledge_circuits.manifest import FOLDER_MANIFEST, begin, fingerprint, finish, locked
from knowledge_circuits.models.shape import Shape


def main() -> None:
    parser = data_parser(__doc__)
    default = Shape()
    parser.add_argument("--output_dir", default="models/nano-untrained", help="the checkpoint folder to write")
    parser.add_argument(
        "--tokenizer_file", help="texts (JSON lines) to learn the tokenizer from; default: prior and training corpus"
    )
    parser.add_argument("--vocab_size", type=positive, default=3_072, help="tokens of the byte-level BPE")
    parser.add_argument("--n_layer", type=positive, default=default.layers, help="layers")
    parser.add_argument("--n_head", type=positive, default=default.heads, help="attention heads of a layer")
    parser.add_argument("--n_embd", type=positive, default=default.width, help="width of the residual stream")
    parser.add_argument("--n_positions", type=positive, default=default.positions, help="context length in tokens")
    parser.add_argument(
        "--initializer_range", type=float, default=default.initializer_range, help="standard deviation of the weights"
    )
    arguments = parser.parse_args()
    from knowledge_circuits.models.nano import random_gpt2, save_checkpoint, train_tokenizer

    folder = DataFolder.of(arguments.data_dir, arguments.N)
    sizes = (arguments.n_layer, arguments.n_head, arguments.n_embd, arguments.n_positions)
    shape = Shape(*sizes, arguments.initializer_range)
    if arguments.tokenizer_file is not None:
        texts = read_texts(arguments.tokenizer_file)
    else:
        texts = read_texts(folder.require(folder.prior, "prior_data_generation.py"))
        texts += read_texts(folder.require(folder.train, "text_data_generation.py"))
    manifest = Path(arguments.output_dir) / FOLDER_MANIFEST
    made_from = {**content_flags(vars(arguments)), "texts": fingerprint(texts)}
    del made_from["tokenizer_file"]  # the texts say what was in it
    with locked(manifest.parent, "generation"):
        begin(manifest, "model", made_from)
        tokenizer = train_tokenizer(texts, arguments.vocab_size, shape.positions)
        model = random_gpt2(tokenizer, shape, arguments.seed)
        finish(manifest, "model", made_from, save_checkpoint(model, tokenizer, arguments.output_dir))
    with folder.locked():
        folder.record("base_model_creation", vars(arguments))
    print(f"{len(tokenizer):,} tokens learned from {len(texts):,} texts")
    print(f"GPT-2 of {model.num_parameters():,} random parameters: {arguments.output_dir}")


if __name__ == "__main__":
    run_program(main)
