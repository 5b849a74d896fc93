"""Figures of stored results; nothing is measured here.

To add a figure, write a function that yields its `Figure`, or the `Missing` numbers with the command that makes them,
in a module of this folder, name it in `figures.BUILDERS` and add that name to `FIGURES` in `settings/choices.py`.
To show it on the report page too, add it to `plots` in `report/report_plots.py` and place `{{ plot("NAME") }}` in
`report/report.html.jinja`, which shows nothing there while no numbers are stored.
"""
