"""Figures: functions from tables to Matplotlib figures, one module per subject, one style.

    style           colours, names, grids, saving
    run             learning, circuit evaluation, topology and findings of a run
    circuit_graph   a circuit as a graph
    components      head kinds, logit lens, one prompt
    dynamics        probes inside training
    forgetting      a forgetting experiment

May import: `analysis` and below. Reads no files.
"""
