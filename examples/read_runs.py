"""All runs as one table: `python read_runs.py [outputs]`.

A row is a run; columns are every key of the configuration (`model.depth`), every number of the result
(`test_accuracy`), and `status`, `label`, `identity`, `protocol`, `directory`.
"""

import sys

from bsnn_cli import load_runs

runs = load_runs(sys.argv[1] if len(sys.argv) > 1 else "outputs")
done = runs[runs["status"] == "done"]
table = done.groupby(["dataset.name", "protocol", "label"])["test_accuracy"].agg(["mean", "std", "count"])
print(table.round(2).to_string())
