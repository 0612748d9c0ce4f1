"""Work over checkpoints x groups: circuit discovery, circuit evaluation and prediction.

    queue           work items shared out over the processes of a launcher
    programs        flags and data that the circuit programs share, one loaded model at a time
    discovery       scored graphs of every group at every checkpoint
    evaluation      circuits, their faithfulness and standalone predictions
    prediction      the answers of every checkpoint to the queries

May import: `corpus`, `engine`, `models` and the shared vocabulary. `run layout` (runs.py) says where results go.
"""
