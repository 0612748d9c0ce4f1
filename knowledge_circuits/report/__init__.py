"""The HTML report of a run, and the comparison of several runs.

    material        everything that a report is written from, read once
    sections        which figures are shown, with captions
    dynamics        the section on the probes inside training
    circuit_browser the data behind the interactive circuits
    page            the page of one run
    comparison      several runs side by side
    templates/      the page's HTML, CSS and JavaScript

May import everything below; nothing imports it but the program report.py.
"""
