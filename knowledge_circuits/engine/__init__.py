"""The circuit engine: from a model and prompt pairs to scored graphs, circuits and their faithfulness.

In the order in which data meet them:

    decoder         a decoder's weights in one form for every architecture
    architecture    what a configuration says: whether the engine computes it, activation, rotary positions
    weights         read a Hugging Face checkpoint into that form, checked against the model's own logits
    prompts         clean and corrupted prompts with labels, batched by length
    products        matrix products, by BLAS or oneDNN
    forward         the forward pass, keeping the activations that the backward pass needs
    backward        the backward pass, written out: gradients at every target's input
    options         methods, interventions and metrics by name, without importing torch
    metrics         the losses that are attributed
    attribution     edge scores: EAP, EAP-IG and variants, from activation differences and gradients
    edge_scores     the products of differences and gradients, summed over runs, prompts and token spans
    exact           edge scores by activation patching, one edge at a time (slow; for comparison)
    graph           the computation graph as matrices [sources, targets], and scored graphs
    graph_files     JSON in EAP-IG 2.0's schema, the same compressed, and its tensor form
    selection       circuits from scores: top-n, threshold, greedy; pruning
    stability       split-half similarity, inclusion frequency and sign stability under the choice of prompts
    floors          noise floors and chance levels: split halves, random circuits, commonest answers
    topology        entropies, Jaccard similarity and edge activation ratios of circuits
    runner          the forward pass of a circuit, other edges replaced by a reference
    evaluation      faithfulness, standalone performance, faithfulness over circuit sizes
    memory          batch sizes from the available memory

May import: `models`, `files`. It knows nothing of biographies, groups, runs or reports.
"""
