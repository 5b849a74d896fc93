"""Output folders filled by hand: finished runs on the paper's datasets, measurements and theory, without training."""

from __future__ import annotations

from pathlib import Path

from bsnn_cli.common.files import write_json
from bsnn_cli.networks.records import EpochRecord
from bsnn_cli.runs.directory import RunDirectory, RunResult
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.identity import run_directory
from bsnn_cli.settings.validation import resolve

PROVENANCE = {
    "version": "0.1.0",
    "commit": "0123456789abcdef",
    "dirty": False,
    "command": "/home/somebody/.venv/bin/bsnn train",
    "python": "3.11.2",
    "torch": "2.15.0",
    "cuda": None,
    "device": "Some CPU",
    "threads": 2,
    "host": "a-secret-name",
    "started": "2026-01-02T03:04:05+00:00",
    "ended": "2026-01-02T03:05:05+00:00",
    "trainer": "Fleet (CEngine)",
}


def store(
    root: Path, activation: str, accuracies: list[float], error: float = 1e-6, dataset: str = "mnist", **values: object
) -> RunDirectory:
    """A finished run with these test accuracies after each epoch; the training accuracy is one more.

    That of a validation share, where there is one (`dataset__validation=0.1`), is one less.

    Args:
        root: the output folder.
        activation: such as `selu_gpn`.
        accuracies: empty for a run that has diverged.
        error: of orthogonality, in every epoch.
        dataset: its kind.
        values: of the config; a dotted key is written `optim__epochs=1`.
    """
    config = TrainConfig(output_root=str(root))
    config.activation.name, config.activation.gpn = activation.removesuffix("_gpn"), activation.endswith("_gpn")
    config.dataset.kind = dataset
    for key, value in values.items():
        *node, field = key.split("__")
        setattr(getattr(config, node[0]) if node else config, field, value)
    config, validated = resolve(config), config.dataset.validation > 0
    directory = RunDirectory(run_directory(config))
    directory.claim(config)
    write_json(directory.path / "provenance.json", PROVENANCE)
    directory.write_epochs(
        [
            EpochRecord(epoch=epoch, step=10 * epoch, train_loss=1, test_loss=1, test_accuracy=accuracy,
                        train_accuracy=None, learning_rate=1, orthogonality_error=error, elapsed_s=epoch,
                        validation_accuracy=accuracy - 1 if validated else None)
            for epoch, accuracy in enumerate(accuracies, 1)
        ]
    )  # fmt: skip
    last = accuracies[-1] if accuracies else None
    root_of_b = config.activation.root if config.activation.gpn else None
    automatic = {"gelu": "lower", "silu": "lower"}.get(config.activation.name, "upper")
    result = RunResult(
        status="done" if accuracies else "diverged", train_accuracy=None if last is None else last + 1,
        test_accuracy=last, train_loss=1.0, test_loss=1.0, epochs=len(accuracies), steps=10 * max(1, len(accuracies)),
        elapsed_s=2.0, activation=config.activation.name, gpn=config.activation.gpn,
        root=automatic if root_of_b == "auto" else root_of_b, norm=config.model.norm,
        batch_norm=config.model.norm == "batch", dataset=str(config.dataset.name), depth=config.model.depth,
        width=config.model.width, weights=config.model.weights, seed=config.seed, parameters=1, networks=1,
        validation_accuracy=last - 1 if validated and last is not None else None,
    )  # fmt: skip
    directory.finish(result, "none")
    return directory
