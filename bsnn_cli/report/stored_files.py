"""Descriptions of every column and key in the files of numbers that this program writes, with units.

The page `docs/files.md` and the text of `bsnn runs help=columns` are both made from `FILES`. Imports no torch.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

INDENT, WIDTH = 6, 110
"""Width of the text for a terminal, in characters."""


@dataclass(frozen=True)
class Entry:
    """A column of a table, or a key of a JSON file.

    Attributes:
        name: as the file has it.
        meaning: definition, in Markdown without markup that a terminal would show.
        unit: of the value, where it has one.
        beside: endings of the names of further columns that stand beside it, such as `_std`.
    """

    name: str
    meaning: str
    unit: str = ""
    beside: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The name and those beside it."""
        return [self.name, *(self.name + ending for ending in self.beside)]


@dataclass(frozen=True)
class File:
    """A kind of file.

    Attributes:
        path: under the output folder, with `*` for what differs; or the call that returns such a table.
        about: what a row is, and which command writes it.
        entries: in the order of the file.
    """

    path: str
    about: str
    entries: Sequence[Entry]


def with_spread(*entries: Entry) -> list[Entry]:
    """Return entries beside each of which `<name>_std` stands."""
    return [replace(entry, beside=("_std",)) for entry in entries]


def only(entries: Sequence[Entry], *names: str) -> list[Entry]:
    """Return the entries of these names, in this order."""
    by_name = {entry.name: entry for entry in entries}
    return [by_name[name] for name in names]


NETWORK = (
    Entry("dataset", "name of the dataset"),
    Entry("activation", "base name of φ, such as selu; of a function from a file its name"),
    Entry("gpn", "whether φ is Gaussian-Poincaré normalised"),
    Entry("separation", "of depth-aware GPN: the 1 − cosine that φ is tailored to keep; empty without"),
    Entry("batch_norm", "whether batch normalisation stands before each activation"),
)
"""Columns that tell networks apart in tables of accuracies."""

DEPTH = Entry("depth", "number L of hidden matrices", "layers")
WIDTH_OF = Entry("width", "units n of a hidden layer; of the first where they differ", "units")
SEED = Entry("seed", "of the initial weights and the order of batches")
ROOT = Entry("root", "solution b of the normalisation that is in use: upper or lower; missing without GPN")
WEIGHTS = Entry("weights", "constraint on the hidden matrices: model.weights")
PROTOCOL = Entry("protocol", "settings that differ from the paper's protocol; paper where none does")
SETTING = Entry("setting", "settings that differ from the paper's protocol, without the one that is compared")
NUMERICS = Entry("numerics", "version of the program's numerics; results of different versions are not to be compared")
SPLIT = Entry("split", "test or train: the samples whose accuracy it is")
IDENTITY = Entry("identity", "hash of all settings that can change the result, but the seed")

EPOCHS = (
    Entry("epoch", "counted from 1", "epochs"),
    Entry("step", "updates of the weights since the start of the run", "updates"),
    Entry(
        "train_loss",
        "cross-entropy: mean of the batch losses of this epoch, taken while the weights change and before each update",
        "nats per sample",
    ),
    Entry("test_loss", "cross-entropy: mean over the whole test split after the epoch", "nats per sample"),
    Entry("test_accuracy", "of the whole test split after the epoch", "%"),
    Entry("train_accuracy", "of the whole training split after the epoch; empty where eval.train_every skips it", "%"),
    Entry("learning_rate", "of the last step of this epoch"),
    Entry(
        "orthogonality_error",
        "largest |WᵀW − I| of all entries and hidden layers after the epoch, not squared; of a matrix that narrows"
        " |WWᵀ − I|, of one that widens |(n_in/n_out)WᵀW − I|; empty with network=",
    ),
    Entry("elapsed_s", "wall time since the start, all sessions added up; of a fleet: of all its networks", "s"),
    Entry("validation_loss", "as test_loss, of the samples that dataset.validation sets aside", "nats per sample"),
    Entry("validation_accuracy", "of these samples after the epoch", "%"),
)

RESULT = (
    Entry("status", "done; or diverged: the loss or a gradient ceased to be finite"),
    Entry("train_accuracy", "of the whole training split at the end; null where diverged", "%"),
    Entry("test_accuracy", "of the whole test split at the end; null where diverged", "%"),
    Entry("train_loss", "as in epochs.csv, of the last epoch", "nats per sample"),
    Entry("test_loss", "as in epochs.csv, of the last epoch", "nats per sample"),
    Entry("epochs", "that were completed", "epochs"),
    Entry("steps", "updates of the weights", "updates"),
    Entry("elapsed_s", "wall time, all sessions added up; of a fleet: of all its networks", "s"),
    *only(NETWORK, "activation", "gpn"),
    ROOT,
    Entry("norm", "normalisation before each activation: model.norm"),
    Entry("batch_norm", "whether norm is batch"),
    *only(NETWORK, "dataset"),
    DEPTH,
    WIDTH_OF,
    WEIGHTS,
    SEED,
    Entry("parameters", "number of trained values"),
    NUMERICS,
    Entry("diverged_epoch", "epoch in which a loss or gradient was not finite, counted from 1; null where done"),
    Entry("diverged_step", "update at which it was, counted from 1; null where done"),
    Entry("networks", "in the fleet that took elapsed_s; null in results from before this was noted"),
    Entry("image", "channels, height and width of what is classified; null in results from before this was noted"),
    Entry("classes", "number of them; null in results from before this was noted"),
    Entry("validation_accuracy", "of the samples that dataset.validation sets aside, at the end; else null", "%"),
    Entry("validation_loss", "of these samples, at the end", "nats per sample"),
)

PROVENANCE = (
    Entry("version", "of bsnn"),
    Entry("commit", "of its source, 40 hexadecimal digits; null where it is not known"),
    Entry("dirty", "whether its files differed from the commit"),
    Entry("command", "as it was typed"),
    Entry("python", "version"),
    Entry("torch", "version"),
    Entry("cuda", "version that torch was built for; null on a CPU"),
    Entry("device", "name of the GPU, or of the processor"),
    Entry("instructions", "vector instructions of the CPU that torch uses, such as AVX512"),
    Entry("threads", "of torch"),
    Entry("host", "name of the machine"),
    Entry("started", "beginning of this session", "UTC, ISO 8601"),
    Entry("ended", "its end; null while it lasts, or where it was killed", "UTC, ISO 8601"),
    Entry("trainer", "what trained it: one network, or a fleet, and with which engine"),
    Entry("arithmetic", "kind of kernels; equal ones round equally"),
    Entry("earlier_sessions", "the same keys of each session that was interrupted before this one, oldest first"),
)

QUANTITIES = (
    Entry("forward_norm", "‖x^l‖²/n: squared length of what enters the layer, per unit, mean over the batch"),
    Entry("one_minus_cosine", "1 − c, with c the mean cosine between two different x^l of the batch"),
    Entry("backward_norm", "‖d^l‖²/n: squared length of d^l = ∂E_b/∂h^l, per unit, mean over the samples b"),
    Entry("gradient_norm", "‖∂E/∂W^l‖_F: Frobenius norm, not squared, of the gradient of the batch mean E of the loss"),
    Entry("preactivation_mean", "of h^l over the batch and all units"),
    Entry("preactivation_variance", "of h^l over the batch and all units: a square"),
    Entry("derivative_mean", "of f'(h^l) over the batch and all units; f is the activation in use"),
    Entry("derivative_std", "standard deviation of f'(h^l) over the batch and all units"),
    Entry("pseudo_linearity", "squared correlation of h^l with f(h^l) over the batch, mean over the units; 1: linear"),
    Entry("saturated", "share of the h^l where |f'| is below a hundredth of its largest value", "0 to 1"),
)

CALLS = (
    Entry("module", "with network=: qualified name of the layer; (output) in the last row"),
    Entry("kind", "with network=: name of its class"),
    Entry("call", "with network=: index of this call among those of the layer, from 0"),
    Entry("weights", "with network=: entries of its matrices and kernels; 0 without"),
)

MEASURED = (
    Entry("forward_norm_first", "‖x^1‖²/n: squared, per unit, mean over the batch, of what enters the first layer"),
    Entry(
        "forward_norm_last",
        "‖x^{L+1}‖²/n: squared, per unit, mean over the batch, of what leaves the last hidden layer",
    ),
    Entry("backward_norm_first", "‖d^1‖²/n: squared, per unit, mean over the samples, of ∂E_b/∂h^1"),
    Entry("backward_norm_last", "‖d^L‖²/n: squared, per unit, mean over the samples, of ∂E_b/∂h^L"),
    Entry("gradient_norm_first", "‖∂E/∂W^1‖_F: not squared"),
    Entry("gradient_norm_last", "‖∂E/∂W^L‖_F: not squared"),
    Entry("gradient_norm_max", "largest ‖∂E/∂W^l‖_F of all layers"),
    Entry("gradient_norm_ratio", "largest over smallest ‖∂E/∂W^l‖_F of all layers; null where one is 0"),
    Entry("zero_gradients", "number of layers whose gradient is exactly 0", "layers"),
    *(replace(entry, meaning=entry.meaning.replace("h^l", "h^L")) for entry in QUANTITIES[4:]),
    Entry("one_minus_cosine_last", "1 − mean cosine between two different x^{L+1} of the batch"),
)

MEASUREMENT = (
    Entry("approach", "preset that was measured; null: none"),
    Entry("seed", "of weights, inputs and top gradient, of the first repeat"),
    Entry("repeats", "measurements, with seeds seed, seed + 1, …"),
    Entry("inputs", "in the batch", "samples"),
    Entry("source", "gaussian: inputs and top gradient are standard Gaussian; dataset: samples and the loss"),
    Entry("dataset", "with source dataset; else null"),
    Entry("trained", "directory of the run whose trained network it is; null: a fresh network"),
)

LABEL = Entry("activation", "as activation= takes it, with -bn for batch normalisation, such as selu_gpn-bn")

STATISTICS = (
    Entry("mean", "accuracy at the end, mean over the seeds that did not diverge", "%"),
    Entry("std", "sample standard deviation over the seeds (n − 1); empty for n = 1", "points"),
    Entry("n", "number of seeds that did not diverge"),
    Entry("interval", "half-width of the 95 % interval of the mean, Student's t; empty below n = 3", "points"),
    Entry("diverged", "number of seeds that diverged, in no mean"),
    replace(NUMERICS, meaning="versions of the program's numerics that the runs were made with"),
)

ACCURACIES = File(
    "tables/*_accuracy.csv",
    "`bsnn table`, of the test and of the training split: a row for each protocol and network.",
    [PROTOCOL, *NETWORK, SPLIT, *STATISTICS],
)


def accuracies(split: str, words: str) -> Entry:
    """Return the accuracy of a split in a table that compares, with what stands beside it."""
    meaning = f"accuracy on the {words} split at the end, mean over the seeds; _std: sample standard deviation"
    return Entry(split, f"{meaning}; _interval: half-width of the 95 % interval", "%", ("_std", "_interval"))


COMPARED = (
    accuracies("test", "test"),
    *only(STATISTICS, "n", "diverged"),
    accuracies("train", "training"),
)

FILES = (
    File("runs/*/*/*/epochs.csv", "`bsnn train`: a row for each epoch of a run.", EPOCHS),
    File("runs/*/*/*/result.json", "`bsnn train`: written when a run has ended; without it a run goes on.", RESULT),
    File(
        "runs/*/*/*/failed.json",
        "`bsnn train`: there only while the last attempt has ended in an error.",
        [Entry("error", "one line"), Entry("traceback", "of Python")],
    ),
    File(
        "*/provenance.json",
        "Beside each run and each measurement: where it was made. `trainer`, `arithmetic` and `earlier_sessions` are of"
        " runs only; an export leaves out what names the machine and its folders.",
        PROVENANCE,
    ),
    File(
        "propagation/*/*/layers.csv",
        "`bsnn propagate`: a row for each layer l; the row L + 1 has only what leaves the last hidden layer, x^{L+1}."
        " n counts the units of the signal; where widths change, those that enter the layer for x^l, and those that"
        " leave it for d^l. With `network=` a row for each call of a layer; then n counts the entries of x^l for a"
        " sample, and d^l is the gradient of what enters. Each quantity is a mean over the repeats; beside it `_std` is"
        " the sample standard deviation over the repeats, empty for one repeat. `measure` returns these columns too.",
        [
            Entry("layer", "l, counted from 1"),
            Entry("repeats", "measurements that the row is the mean of"),
            *CALLS,
            *with_spread(*QUANTITIES),
        ],
    ),
    File(
        "propagation/*/*/histogram.csv",
        "`bsnn propagate`: a row for each of 100 equal bins of the slopes f'(h) of a layer, over all repeats.",
        [
            Entry("layer", "l, counted from 1"),
            Entry("left", "edge of the bin, a slope"),
            Entry("right", "other edge of the bin"),
            Entry("count", "slopes in it, over units, inputs and repeats"),
            Entry("density", "count over their number and the width of the bin: the histogram has area 1"),
        ],
    ),
    File(
        "propagation/*/*/summary.json",
        "`bsnn propagate`: the numbers of the ends and of the last hidden layer; written last. Each is a mean over the"
        " repeats, with `_std`, the sample standard deviation; null where it is not finite in some repeat.",
        [
            LABEL,
            Entry("network", "with network=: name of the function, in place of activation and width"),
            Entry("label", "of the network, for people"),
            replace(DEPTH, meaning="number L of hidden matrices; with network=, of calls of layers with weights"),
            WIDTH_OF,
            Entry("widths", "only where they differ: the L + 1 widths, of what enters each layer and leaves the last"),
            Entry("calls", "with network=: number of calls of layers"),
            *MEASUREMENT,
            *with_spread(*MEASURED),
            Entry("each_repeat", "a list: the same numbers of every repeat, without `_std`"),
            NUMERICS,
            Entry("config", "every key of the measurement with its value"),
        ],
    ),
    File(
        "theory/theory.csv",
        "`bsnn theory`: probabilities of deviations against the width, and signals over depth, predicted and measured."
        " What does not apply to a row is empty.",
        [
            Entry(
                "what",
                "tsc, theorem_1, theorem_2: probability of a deviation; length: ‖x‖²/n, squared and per unit; angle:"
                " 1 − cosine of two signals; gradient: ‖∂E/∂h^l‖², squared, relative to ‖∂E/∂x‖² at the end;"
                " jacobian_mean, jacobian_variance, jacobian_largest: mean of the squared singular values of the"
                " Jacobian, their variance over mean², and the largest singular value, not squared",
            ),
            Entry("case", "assumption that is broken: none, haar (W = I), shell (‖x‖²/n = 2) or gpn (φ as it is)"),
            *only(NETWORK, "activation", "gpn"),
            ROOT,
            Entry("chi", "slope χ of log of the length map over log of the length, at 1; above 1 lengths run away"),
            Entry("basin", "‖x‖²/n up to which a long input comes back to 1; inf: from everywhere"),
            WIDTH_OF,
            Entry("epsilon", "deviation ε that counts"),
            Entry("estimate", "share of the trials that deviate by ε or more", "0 to 1"),
            Entry("low", "lower end of its 95 % interval (Wilson)", "0 to 1"),
            Entry("high", "upper end of this interval", "0 to 1"),
            Entry("trials", "independent draws, or networks over which measured is averaged"),
            Entry("layer", "l, counted from 1"),
            Entry("start", "value of the quantity at the input"),
            Entry("predicted", "at infinite width, after layer l"),
            Entry("band_low", "lower end of where measured must lie at this width"),
            Entry("band_high", "upper end of this band"),
            Entry("measured", "geometric mean over the networks, after layer l"),
            Entry("measured_low", "least of the networks"),
            Entry("measured_high", "largest of the networks"),
            Entry("weights", "law of the matrices over depth: orthogonal or gaussian"),
            Entry("sigma_w", "scale σ_w of the matrices"),
            Entry("sigma_b", "standard deviation σ_b of the biases"),
        ],
    ),
    File(
        "bench/bench.csv",
        "`bsnn bench`: a row for each implementation in each comparison, timed in turns.",
        [
            Entry("comparison", "what was timed in turns: main, norm=…, weights=…; depth, width or networks: growth"),
            Entry("implementation", "bsnn, a variant of plain PyTorch, or products, arithmetic or traffic of a step"),
            Entry("networks", "trained at once"),
            DEPTH,
            WIDTH_OF,
            Entry("batch_size", "of a step", "samples"),
            Entry("norm", "model.norm"),
            WEIGHTS,
            Entry("activation", "as activation= takes it"),
            Entry("precision", "fp32 or tf32"),
            Entry("device", "cpu or cuda"),
            Entry("threads", "of torch"),
            Entry("peak_memory_mb", "peak beyond program and data; empty where not measured", "10⁶ bytes"),
            Entry("step_ms", "median time of a step of all networks", "ms"),
            Entry("step_ms_low", "lower quartile", "ms"),
            Entry("step_ms_high", "upper quartile", "ms"),
            Entry("network_steps_per_s", "networks over the median time", "1/s"),
            Entry("ratio_to_plain", "network-steps a second over those of plain PyTorch, within a round"),
            Entry("ratio_to_best", "the same over the fastest variant of plain PyTorch"),
            Entry("ratio_to_products", "time of a step over that of its products by PyTorch's library, within a round"),
            Entry("limit_ms", "median of the larger one of arithmetic and traffic, which no step is faster than", "ms"),
            Entry("ratio_to_limit", "time of a step over that limit, within a round"),
            Entry("table_hours", "for all updates of the paper's table at this speed, without evaluation", "h"),
        ],
    ),
    ACCURACIES,
    File(
        "tables/pivot_*.csv",
        "`bsnn table rows=… columns=…`: a row for each place in the table.",
        [
            Entry("block", "settings that the table's runs share; empty: the paper's"),
            Entry("row", "value of the key of the rows"),
            Entry("column", "value of the key of the columns"),
            *only(NETWORK, "dataset", "activation", "gpn", "batch_norm"),
            SPLIT,
            *STATISTICS,
        ],
    ),
    File(
        "tables/comparison.csv",
        "`bsnn table`: each accuracy that the paper has published, with ours.",
        [
            *only(NETWORK, "dataset"),
            SPLIT,
            *only(NETWORK, "activation", "gpn", "batch_norm"),
            Entry("ours", "mean over our seeds at the paper's protocol", "%"),
            Entry("ours_std", "sample standard deviation over them", "points"),
            Entry("ours_interval", "half-width of the 95 % interval of the mean", "points"),
            *only(STATISTICS, "n", "diverged"),
            Entry("published", "the paper's", "%"),
            Entry("difference", "ours − published", "points"),
        ],
    ),
    File(
        "tables/paired.csv",
        "`bsnn table`: accuracy with GPN minus that without, over the seeds that both have.",
        [
            PROTOCOL,
            *NETWORK[:2],
            *NETWORK[3:],
            SPLIT,
            Entry("mean", "of the differences over the pairs", "points"),
            Entry("std", "sample standard deviation of the differences; empty for one pair", "points"),
            Entry("n", "number of pairs"),
            Entry("interval", "half-width of the 95 % interval of the mean difference; empty below three", "points"),
            Entry("diverged", "pairs left out because a run diverged"),
            STATISTICS[-1],
        ],
    ),
    File(
        "tables/constraint.csv",
        "`bsnn table kind=constraint`: exact orthogonality and rows of unit length, all else equal.",
        [
            SETTING,
            *NETWORK,
            replace(WEIGHTS, meaning="unit_rows or orthogonal"),
            *COMPARED,
            Entry("step_ms", "time of a step of one network by `bsnn bench`; empty where not timed", "ms"),
            *only(MEASURED, "forward_norm_last", "gradient_norm_ratio", "one_minus_cosine_last"),
            Entry("orthogonality_error", "largest |WᵀW − I| of any epoch and seed; not squared"),
            Entry("measured", "trained networks whose signals these are"),
        ],
    ),
    File(
        "tables/roots.csv",
        "`bsnn table kind=roots`: both solutions b, trained with all else equal.",
        [SETTING, *NETWORK, ROOT, *COMPARED],
    ),
    File(
        "tables/root_signals.csv",
        "`bsnn table kind=roots`: signals with both solutions b at the start; of each quantity the least and the"
        " largest of the repeats.",
        [
            *only(NETWORK, "activation"),
            ROOT,
            Entry("published", "whether it is the root of the paper's rule"),
            Entry("chi", "slope χ of the length map at 1"),
            Entry("predicted_low", "lower end of where ‖x^{L+1}‖²/n must lie, by the theory of fluctuations"),
            Entry("predicted_high", "upper end"),
            DEPTH,
            WIDTH_OF,
            *only(MEASUREMENT, "inputs"),
            Entry("n", "number of repeats"),
            *(
                Entry(f"{entry.name}_{end}", f"{words} of the repeats: {entry.meaning}")
                for entry in only(MEASURED, "forward_norm_last", "gradient_norm_ratio", "one_minus_cosine_last")
                for end, words in (("low", "least"), ("high", "largest"))
            ),
        ],
    ),
    File(
        "tables/approaches.csv",
        "`bsnn table kind=approaches`: the numbers of summary.json of each approach.",
        [
            *only(MEASUREMENT, "approach"),
            LABEL,
            DEPTH,
            WIDTH_OF,
            *only(MEASUREMENT, "seed", "repeats", "inputs", "dataset", "trained"),
            *with_spread(*MEASURED),
            NUMERICS,
        ],
    ),
    File(
        "runs.csv",
        "`bsnn report export=FOLDER`: a row for each finished run, with what its result.json and provenance.json say;"
        " the command is the one that repeats the run, `started` is of its first session.",
        [
            *NETWORK[:4],
            ROOT,
            *NETWORK[4:],
            WEIGHTS,
            DEPTH,
            WIDTH_OF,
            *only(RESULT, "epochs", "seed", "status", "test_accuracy", "train_accuracy", "test_loss", "train_loss"),
            *only(RESULT, "validation_accuracy", "validation_loss"),
            *only(RESULT, "steps", "elapsed_s", "networks", "diverged_epoch", "diverged_step"),
            NUMERICS,
            IDENTITY,
            replace(PROTOCOL, meaning="settings that differ from the paper's protocol; empty where none does"),
            Entry("command", "that repeats the run"),
            *only(PROVENANCE, "version", "commit", "dirty", "python", "torch", "cuda", "device", "threads", "trainer"),
            Entry("started", "beginning of the first session", "UTC, ISO 8601"),
            Entry("ended", "end of the last session", "UTC, ISO 8601"),
        ],
    ),
    File(
        "bsnn gpn format=csv",
        "Printed: a row for each activation, h standard normal. f = aφ + b.",
        [
            Entry("activation", "base name of φ"),
            Entry("gain", "of a tailored φ: α of φ(αh), where it is that which was moved"),
            Entry("share", "of a tailored φ: s of (1 − s)φ(h) + sh, where it is that which was moved"),
            Entry("1 − c", "of a tailored φ: what it keeps of right angles after all layers"),
            Entry("layers", "of a tailored φ: over which it keeps that", "layers"),
            Entry("a", "factor of the normalisation"),
            Entry("b", "shift of the normalisation"),
            ROOT,
            Entry("chi", "slope χ of the length map at 1; above 1 lengths run away"),
            Entry("basin", "‖x‖²/n up to which a long input comes back to 1; inf: from everywhere"),
            Entry("E[φ²]", "second moment before normalisation"),
            Entry("E[φ'²]", "mean squared slope before normalisation"),
            Entry("E[φ]", "mean before normalisation"),
            Entry("E[f²]", "second moment after it, to be seen as 1"),
            Entry("E[f'²]", "mean squared slope after it, to be seen as 1"),
            Entry("published a", "the paper's; empty where it has none for this root"),
            Entry("published b", "the paper's"),
            Entry("difference a", "ours − published"),
            Entry("difference b", "ours − published"),
        ],
    ),
    File(
        "load_runs(...)",
        "The frame of all runs, by whose columns `bsnn runs` sorts: every key of the configuration by its dotted name,"
        " every key of result.json, missing where a run is not finished, and these.",
        [
            Entry("directory", "of the run"),
            Entry("status", "done, diverged, running, failed or interrupted"),
            IDENTITY,
            replace(
                PROTOCOL, meaning="settings that differ from the paper's protocol, in words; empty where none does"
            ),
            Entry("settings", "the same settings, to be compared"),
            Entry("label", "activation as activation= takes it, with -bn for batch normalisation"),
            Entry("epoch", "number of epochs in epochs.csv", "epochs"),
        ],
    ),
)
"""All files of numbers under an output folder, and tables that are printed or returned."""

INTRODUCTION = (
    "A number that is missing is an empty field in a CSV file and null in JSON. Lengths that carry `norm` in their name"
    " are squared and per unit if they are of signals (`forward_norm`, `backward_norm`), and not squared if they are of"
    " gradients of weights (`gradient_norm`); names in files stay as they are, so that old files can be read."
    " `config.yaml`, beside each of these files, has the keys that `bsnn VERB --help` explains."
)
HEADING = "# Files and their columns"
CLOSING = "`bsnn runs help=columns` prints this page on a terminal; with `format=csv` or `json` as one table."


def rows() -> Iterator[dict[str, Any]]:
    """Yield a row for each column and key: `file`, `name`, `unit` and `meaning`."""
    for file in FILES:
        for entry in file.entries:
            for name in entry.names:
                yield {"file": file.path, "name": name, "unit": entry.unit, "meaning": entry.meaning}


def page() -> str:
    """Return `docs/files.md`."""
    parts = [HEADING, "\n".join(textwrap.wrap(INTRODUCTION, 120)), "\n".join(textwrap.wrap(CLOSING, 120))]
    for file in FILES:
        lines = [
            f"| {', '.join(f'`{name}`' for name in entry.names)} | {entry.unit} | {escaped(entry.meaning)} |"
            for entry in file.entries
        ]
        parts += [
            f"## `{file.path}`",
            "\n".join(textwrap.wrap(file.about, 120)),
            "\n".join(["| name | unit | meaning |", "|---|---|---|", *lines]),
        ]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Return a text as a cell of a Markdown table, with nothing that ends the cell or is taken for markup."""
    return "".join(f"\\{character}" if character in "|_*<" else character for character in text)


def text() -> str:
    """Return the text for a terminal: a paragraph for each file, two lines for each of its columns."""
    parts = [wrapped(INTRODUCTION.replace("`", ""), 0)]
    for file in FILES:
        lines = [file.path, wrapped(file.about.replace("`", ""), 2)]
        for entry in file.entries:
            lines.append(f"  {', '.join(entry.names)}" + (f" [{entry.unit}]" if entry.unit else ""))
            lines.append(wrapped(entry.meaning, INDENT))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def wrapped(words: str, indent: int) -> str:
    """Return a paragraph for a terminal."""
    margin = " " * indent
    return textwrap.fill(words, WIDTH, initial_indent=margin, subsequent_indent=margin)


def explained(form: str) -> str:
    """Return the explanation of all files as `text`, `markdown`, `csv` or `json`."""
    if form == "text":
        return text()
    if form == "markdown":
        return page().rstrip("\n")
    import pandas as pd

    from bsnn_cli.common.table import render

    return render(pd.DataFrame(rows()), form)
