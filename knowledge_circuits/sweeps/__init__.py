"""Work over checkpoints x groups: circuit discovery, circuit evaluation and prediction.

    processes         work items shared over the processes of a launcher
    flags             flags that the circuit programs share
    programs          data, models and existing results as all programs that sweep treat them
    discovery         scored graphs of every group at every checkpoint
    targets           test items of target groups
    chosen_circuits   which circuits are evaluated: scoring, sizes, origins
    evaluation        circuits, their faithfulness and standalone predictions
    cross_groups      every group's circuit on every other group's prompts
    prediction        the answers of every checkpoint to the queries
    answers           the answers to questions with documents in the prompt

May import: `training`, `corpus`, `engine`, `models` and the shared vocabulary. `runs` says where results go.
"""
