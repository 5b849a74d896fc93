"""Suggestions for words that are not known: the same in another spelling or by another name, then the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SYNONYMS = {
    "learning_rate": "lr",
    "learningrate": "lr",
    "step_size": "lr",
    "batch": "batch_size",
    "batchsize": "batch_size",
    "bs": "batch_size",
    "epoch": "epochs",
    "n_epochs": "epochs",
    "num_epochs": "epochs",
    "layers": "depth",
    "n_layers": "depth",
    "num_layers": "depth",
    "hidden": "width",
    "hidden_size": "width",
    "hidden_dim": "width",
    "units": "width",
    "normalization": "norm",
    "normalisation": "norm",
    "batch_norm": "norm",
    "batchnorm": "norm",
    "bn": "norm",
    "cuda": "device",
    "gpu": "device",
    "data_dir": "root",
    "data_root": "root",
    "output_dir": "output_root",
    "outdir": "output_root",
    "out": "output_root",
    "workers": "threads",
    "optimizer": "optim",
    "optimiser": "optim",
    "opt": "optim",
    "wd": "weight_decay",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "sched": "schedule",
    "lr_schedule": "schedule",
    "warmup_epochs": "warmup",
    "grad_clip": "clip",
    "gradient_clip": "clip",
    "clip_grad": "clip",
    "gamma": "decay_rate",
}
"""Other words for the last part of a key."""

NAMES = {
    "swish": "silu",
    "leaky_relu": "lrelu",
    "leakyrelu": "lrelu",
    "linear": "identity",
    "logistic": "sigmoid",
    "bn": "batch",
    "batch_norm": "batch",
    "batchnorm": "batch",
    "ln": "layer",
    "gn": "group",
    "false": "none",
    "xavier": "glorot_uniform",
    "glorot": "glorot_uniform",
    "kaiming": "he_normal",
    "he": "he_normal",
    "lecun": "lecun_normal",
    "cifar": "cifar10",
    "fashion": "fashion_mnist",
    "adam": "adamw",
    "step_lr": "step",
    "cosine_annealing": "cosine",
}
"""Other names of choices, without the form of an activation such as `_gpn`."""


def nearest(word: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return at most n of the known names that may be meant by a word, the most likely first.

    Args:
        word: a name or a key.
        known: names, or dotted keys, of which the last part alone counts as well: `depth` means `model.depth`.
        n: how many.
        cutoff: how alike two words must be, as `difflib.get_close_matches` takes it.
    """
    names = list(known)
    base, mark, form = word.lower().partition("_gpn")
    meant = {word.lower(), f"{NAMES.get(base, base)}{mark}{form}", SYNONYMS.get(base, base)}
    same = [name for name in names if name.lower() in meant or name.rpartition(".")[2] in meant]
    return list(dict.fromkeys([*same, *difflib.get_close_matches(word, names, n=n, cutoff=cutoff)]))[:n]
