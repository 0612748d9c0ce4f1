"""Measures over a run's saved files: tables, curves, verdicts.

    timeline              a run's name, the epochs of its checkpoints, its training log
    learning_tables       evaluations in training and answers to queries, as data frames
    circuit_settings      which circuits of a run are meant, and their files
    run_circuits          all circuits of a run: membership, topology, stability, token spans
    circuit_tables        circuits' evaluations and predictions, as data frames; the last checkpoint's numbers
    curves                smoothing, areas, breakpoints
    findings              the paper's three findings, each with its statistic and verdict
    dynamics              when facts are learned and forgotten, from the probe records
    relations             knowledge beside loss, skill and circuits; which checkpoint each stopping rule picks
    components            head kinds and logit lens for all groups and checkpoints of a run
    head_kinds            mover, relation and mixture heads
    logit_lens            the rank of the answer after every layer
    prompt_view           one prompt through one model
    forgetting            a forgetting experiment: one run per replay ratio
    transferred_circuits  which checkpoints' circuits are evaluated in all other checkpoints
    acquisition           when a fact is held for several probes in a row; correlations with the loss
    statistics            inference over runs: t intervals, permutation tests, Holm's correction
    study_runs            measure the runs of a designed study (several seeds) and write their tables
    study_tables          the files of a designed study, and the reader that joins them
    study_findings        the verdicts of a designed study
    documents             a study of runs on documents with questions, by strategy
    document_tables       what they learned and what it cost
    document_claims       claims about training on documents, judged on a study
    fact_circuits         how circuits of one's own facts change between checkpoints
    summary               the table that scripts/reproduce.sh ends with
    __main__              the commands summary, origins, facts, relevance and depth

May import: `training`, `corpus`, `engine`, `models` and the shared vocabulary. Draws nothing.
"""
