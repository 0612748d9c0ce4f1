"""Continual pre-training on the Hugging Face Trainer: from flags and documents to checkpoints and probe records.

    flags           the flags of train.py from their source text, before torch is imported
    arguments       the flags of train.py
    packing         documents as blocks of token ids
    replay          a share of earlier documents among the new ones
    data            the blocks that the Trainer reads, cached, in seeded order
    starting_model  the checkpoint or configuration that training starts from
    trainer         the Trainer, with atomic checkpoints and first-token accuracies
    checkpoints     checkpoint folders: manifests, checks, what training goes on from
    callbacks       when checkpoints are saved, and the record of every evaluation
    strategies      the flags of training strategies; entities marked in the text
    exposure        documents of learned entities left out of the next epoch
    lora            low-rank adapters instead of all weights
    divergence      predictions kept near those of an earlier model
    probes          which facts the model knows at each probe, and which skills it keeps
    question_probes what the model answers to questions about its documents
    probe_files     the probes that the flags ask for
    skills          multiple-choice examples and held-out text
    stopping        the rule that ends training on knowledge
    resume          whether a folder holds the same run, and where its training goes on
    run             a whole training run, resumable

May import: `corpus`, `models` and the shared vocabulary.
"""
