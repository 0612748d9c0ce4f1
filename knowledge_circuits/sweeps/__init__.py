"""Work over checkpoints x groups: circuit discovery, circuit evaluation and prediction.

    processes         work items shared over the processes of a launcher
    flags             flags that the circuit programs share
    model_loader      one loaded checkpoint at a time, and what results depend on of it
    groups            the prompts of the groups that the flags choose
    programs          threads, work items and graphs, as all programs that sweep treat them
    discovery         scored graphs of every group at every checkpoint
    targets           test items of target groups
    chosen_circuits   which circuits are evaluated: scoring, sizes, origins
    evaluation        circuits, their faithfulness and standalone predictions
    cross_groups      every group's circuit on every other group's prompts
    prediction        the answers of every checkpoint to the queries
    answers           the answers to questions with documents in the prompt

May import: `training`, `corpus`, `engine`, `models` and the shared vocabulary. `runs` says where results go.
"""
