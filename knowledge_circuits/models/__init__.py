"""Hugging Face models: loading, tokenization, scoring and generation, and the small model "nano".

    loading         checkpoint folders, weights in a dtype on a device, checks that they are whole and finite
    tokenization    the start token, label ids, and which positions hold the subject
    scoring         log probabilities, ranks and greedy choices of given continuations, in one forward pass
    generation      greedy continuation of prompts in batches
    nano            a GPT-2 with random weights and a tokenizer trained on given texts
    shape           its layers, heads, width and context

May import: `files`, `command_line`. Imported by every room above. Knows nothing of people, groups or runs.
"""
