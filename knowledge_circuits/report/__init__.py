"""The HTML report of a run, the comparison of several runs, and their publication.

    material            everything that a report is written from, read once
    section             what a section is, and how its figures get into a page
    findings            cards and figures of the paper's findings
    run_sections        the sections of a run's page: their figures and captions
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
