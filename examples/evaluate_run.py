"""The network of a finished run as an `nn.Module`: `python evaluate_run.py outputs/runs/digits/selu_gpn/…`."""

import json
import sys
from pathlib import Path

import torch

from bsnn_cli import load_dataset, load_run

directory = Path(sys.argv[1])
network, dataset = load_run(directory), load_dataset(directory)
with torch.inference_mode():
    logits = network(dataset.standardise(dataset.test.images))
accuracy = 100 * (logits.argmax(1) == dataset.test.labels).double().mean()
print(f"test accuracy {accuracy:.2f} %, of {len(dataset.test.labels)} images")
print(f"the run says  {json.loads((directory / 'result.json').read_text())['test_accuracy']:.2f} %")
