"""The HTML report of a run, the comparison of several runs, and their publication.

    material            everything that a report is written from, read once
    section             what a section is, and how its figures get into a page
    findings            cards and figures of the paper's findings
    learning            the section on what was learned
    circuit_evaluation  the section on faithfulness and Hit@10
    topology            the section on entropy, similarity and layers
    stability           the section on resampled prompts, token spans and circuits across groups
    components          the section on head kinds and the logit lens
    dynamics            the section on the probes inside training
    circuit_browser     the data behind the interactive circuits
    page                the page of one run
    comparison          several runs side by side
    study               a designed study: a verdict per finding
    documents           runs on documents with questions: a verdict per claim
    publishing          a run's results and a checkpoint, each with a card, for a hub
    __main__            the command that publishes
    templates/          the page's HTML, CSS and JavaScript

May import everything below; nothing imports it but the program report.py.
"""
