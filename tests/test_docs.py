"""What README and docs tell to type is typed here: run, or where it takes long, composed and checked.

A fenced block of `sh` or `python` is run, in the order of its page; one that follows a comment such as `<!-- file: NAME
-->` is written to this file. A block that follows the comment `<!-- long -->` is not run: the first and the last job of
a `bsnn` line in it have to make sound configs, each `make` line has to name a target. So has a command in the text,
unless it has a word in capitals for the reader to fill in. These of all pages are looked at together, as Hydra takes
long to begin.
"""

from __future__ import annotations

import functools
import glob
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import yaml
from hydra.errors import HydraException
from scipy import stats

from bsnn_cli import cli
from bsnn_cli.errors import ConfigError
from bsnn_cli.figures import figures
from bsnn_cli.results import statistics
from bsnn_cli.runs import job
from bsnn_cli.settings import composition
from bsnn_cli.settings.arguments import filters
from bsnn_cli.settings.choices import ACTIVATION_LABELS
from bsnn_cli.settings.composition import Composer
from tests.reproducing import in_this_process

CHECKOUT = Path(__file__).parents[1]
DOCS = sorted(str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "docs").rglob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", *DOCS]
COMMENT = r"(?P<long><!-- long -->\n+)?(?:<!-- file: (?P<file>\S+) -->\n+)?"
FENCE = re.compile(rf"^{COMMENT}```(?P<language>sh|python|yaml)\n(?P<text>.*?)^```$", re.M | re.S)
LIBRARY = "docs/library.md"
EXAMPLES = sorted(path.name for path in (CHECKOUT / "examples").glob("*.py"))


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    long: bool
    file: str | None
    text: str


def blocks(page: str) -> list[Block]:
    found = FENCE.finditer((CHECKOUT / page).read_text())
    return [Block(match["language"], match["long"] is not None, match["file"], match["text"]) for match in found]


def not_run(block: Block) -> bool:
    return block.long and block.language == "sh"


def in_text(page: str) -> list[list[str]]:
    """The words of the commands outside of fenced blocks."""
    found = re.findall(r"`(bsnn [^`…]*=[^`…]*)`", FENCE.sub("", (CHECKOUT / page).read_text()))
    return [shlex.split(text) for text in found if not re.search(r"(?<![A-Za-z])[A-Z]{3,}", text)]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each line, without comments; file names are expanded as a shell does."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield [name for word in words for name in (sorted(glob.glob(word)) if "=" not in word else []) or [word]]


def execute(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = words
    if program == "bsnn":
        assert cli.dispatch(arguments) == 0, words
    else:
        assert program == "python", f"mark the block as long: {words}"
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(arguments[0], run_name="__main__")


def unsound(told: Iterable[tuple[str, list[str]]]) -> list[str]:
    """What is wrong with commands, given with their pages; nothing is run."""
    found = []

    def look(_: object) -> None:
        composer = functools.cache(Composer)
        for page, words in told:
            try:
                check(words, composer)
            except (ConfigError, HydraException) as error:
                found.append(f"{page}: {' '.join(words)}: {error}")

    cli.register_plugins("train")
    composition.run("train", [], look)
    return found


def check(words: list[str], composer: Callable[[str], Composer]) -> None:
    """Raise `ConfigError` unless this command could be given, while Hydra is at work."""
    program, *arguments = words
    for word in words:
        if word.startswith("docs/") and not (CHECKOUT / word).exists():
            raise ConfigError(f"{word}: is not there")
    if program == "make" and not re.search(rf"^{arguments[0]}:", (CHECKOUT / "Makefile").read_text(), re.M):
        raise ConfigError(f"{arguments[0]}: no such target")
    if program == "bsnn" and not arguments[0].startswith("-"):
        verb, *overrides = arguments
        if verb not in cli.VERBS:
            raise ConfigError(f"{verb}: no such verb")
        if verb == "rerun":  # takes a directory that is there
            return
        own = [each for each in filters(verb, overrides) if "=" in each and not each.startswith("hydra")]
        jobs = composer(verb).combinations(own)
        for one in jobs[:: max(1, len(jobs) - 1)]:  # the first and the last
            composition.expand(one, composer(verb))


def follow(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what a page tells to do, in a folder with nothing but the examples."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(figures, "FORMATS", ("png",))  # the others are tested with the figures
    shutil.copytree(CHECKOUT / "examples", folder / "examples")
    for block in blocks(page):
        if block.file is not None:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text)
        elif block.language == "python":
            code = compile(block.text, page, "exec")
            if not block.long:
                exec(code, {"__name__": "__main__"})
        elif not block.long:
            for words in commands(block.text):
                execute(words, monkeypatch)


APART = ("README.md", LIBRARY)
"""Pages of which something is promised that is tested along with following them."""


@pytest.mark.parametrize("page", [page for page in PAGES if page not in APART and not all(map(not_run, blocks(page)))])
def test_what_a_page_tells_to_type_works(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(page, tmp_path, monkeypatch)


def test_the_first_commands_of_the_readme_give_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "supervise", in_this_process)
    follow("README.md", tmp_path, monkeypatch)
    runs = pd.read_csv(tmp_path / "outputs" / "tables" / "test_accuracy.csv")
    [shown] = re.findall(r"^Tanh +([\d.]+) +\*\*([\d.]+)\*\*$", (CHECKOUT / "README.md").read_text(), re.M)
    for gpn, number in zip((False, True), shown, strict=True):
        [accuracy] = runs[runs["gpn"] == gpn]["mean"]
        assert accuracy == pytest.approx(float(number), abs=2)  # other processors round otherwise


def test_what_is_not_run_could_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = [(page, words) for page in PAGES for words in in_text(page)]
    long = [(page, block.text) for page in PAGES for block in blocks(page) if not_run(block)]
    told += [(page, words) for page, text in long for words in commands(text)]
    assert len(told) > 50
    assert unsound(told) == []


def test_the_examples_print_what_they_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "supervise", in_this_process)
    follow(LIBRARY, tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    [out] = re.findall(r"in and out of 50 layers: [\d.]+, ([\d.]+)", printed)
    assert float(out) == pytest.approx(1, abs=0.1)
    spreads = re.findall(r"depth-aware +[\d.]+ +[\d.]+ +([\d.]+) +([\d.]+)", printed)
    assert len(spreads) == 5
    for measured, predicted in spreads:
        assert float(measured) == pytest.approx(float(predicted), rel=0.25)
    [accuracy] = re.findall(r"test accuracy after 3 epochs: ([\d.]+)", printed)
    assert float(accuracy) > 70
    _, trained_gpn, orthogonal, orthogonal_gpn = map(float, re.findall(r"Tanh.*‖x‖²/n = ([\d.]+), gradient", printed))
    assert orthogonal_gpn == pytest.approx(1, abs=0.1)
    assert orthogonal < 0.1
    assert abs(trained_gpn - 1) > 0.5
    for network in ("CNN of 100 layers", "12 transformer MLPs"):
        as_built, gpn = re.findall(rf"{network} +(?:as built|GPN) +([\d.e-]+) to ([\d.e-]+)", printed)
        assert float(as_built[0]) < 0.01
        assert 0.5 < float(gpn[0]) <= float(gpn[1]) < 2
    assert (tmp_path / "normalised_resnet18.png").stat().st_size > 10_000
    [ours] = re.findall(r"test accuracy ([\d.]+) %, of 355 images", printed)
    [theirs] = re.findall(r"the run says +([\d.]+) %", printed)
    assert ours == theirs


def test_what_is_not_run_is_held_to_the_configs() -> None:
    sound = "bsnn train -m activation=tanh,selu_gpn dataset=digits model.depth=3,4"
    wrong = ["activation=tanh,seluu", "model.depth=3,0", "model.depth=0,3", "optim.lrr=1", "seed=[1"]
    lines = [*(f"bsnn train -m {each}" for each in wrong), "bsnn tran", "make nothing", "cp -r docs/nothing outputs"]
    found = unsound(("README.md", line.split()) for line in [sound, *lines])
    for given, told in zip(lines, found, strict=True):
        assert told.startswith(f"README.md: {given}: ")


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_on_the_page_for_it(name: str) -> None:
    assert f"examples/{name}" in (CHECKOUT / LIBRARY).read_text()


def test_the_citation_has_what_its_schema_asks_for() -> None:
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    project = re.search(r'^version = "(.*)"$', (CHECKOUT / "pyproject.toml").read_text(), re.M)
    assert project is not None
    assert citation["version"] == project[1]
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors", "journal", "year"} <= paper.keys()
    assert all(author.keys() <= {"given-names", "family-names"} for author in paper["authors"])


def test_the_numbers_of_the_readme_are_those_of_the_results() -> None:
    """Ours beside the published ones, of the paper's six activations, and those of depth-aware GPN."""
    runs = pd.read_csv(CHECKOUT / "docs" / "results" / "paper" / "runs.csv", keep_default_na=False)
    runs = runs[(runs["protocol"] == "") & (runs["seed"] == 0) & (runs["dataset"] == "mnist") & ~runs["batch_norm"]]
    tailored = runs[runs["separation"] != ""].set_index("activation")["test_accuracy"]
    runs = runs[runs["separation"] == ""]
    paper = statistics.published()
    paper = paper[(paper["split"] == "test") & (paper["dataset"] == "mnist") & ~paper["batch_norm"]]
    table = re.findall(
        r"^\| (\w+) +\|" + r" +([\d.]+) \|" * 4 + r" +([\d.]+|–) \|$", (CHECKOUT / "README.md").read_text(), re.M
    )
    assert len(table) == 6
    for label, *cells, depth_aware in table:
        [name] = (key for key, text in ACTIVATION_LABELS.items() if text == label)
        assert depth_aware == (f"{float(tailored[name]):.2f}" if name in tailored else "–")
        for gpn, ours, theirs in ((False, *cells[:2]), (True, *cells[2:])):
            run = runs[(runs["activation"] == name) & (runs["gpn"] == gpn)]
            assert f"{float(run['test_accuracy'].item()):.2f}" == ours
            accuracy = paper[(paper["activation"] == name) & (paper["gpn"] == gpn)]["published"].item()
            assert f"{accuracy:.2f}" == theirs


@pytest.mark.parametrize(("place", "dataset", "published"), [(0, "mnist", "mnist"), (1, "cifar10_jpeg", "cifar10")])
def test_the_tables_of_whole_trainings_are_those_of_the_results(place: int, dataset: str, published: str) -> None:
    """Test and training accuracy, ours beside the published ones."""
    runs = pd.read_csv(CHECKOUT / "docs" / "results" / "paper" / "runs.csv", keep_default_na=False)
    runs = runs[(runs["dataset"] == dataset) & (runs["seed"] == 0) & ~runs["batch_norm"] & (runs["separation"] == "")]
    paper = statistics.published()
    paper = paper[(paper["dataset"] == published) & ~paper["batch_norm"]]
    page = (CHECKOUT / "docs" / "reproduction.md").read_text()
    rows = re.findall(r"^\| (\w+) \|" + r" ([\d.]+) \(([\d.]+)\) \|" * 4 + "$", page, re.M)[6 * place : 6 * place + 6]
    assert len(rows) == 6
    for label, *cells in rows:
        [name] = (key for key, text in ACTIVATION_LABELS.items() if text == label)
        for gpn, numbers in ((False, cells[:4]), (True, cells[4:])):
            run = runs[(runs["activation"] == name) & (runs["gpn"] == gpn)]
            theirs = paper[(paper["activation"] == name) & (paper["gpn"] == gpn)].set_index("split")["published"]
            ours = [float(run[f"{split}_accuracy"].item()) for split in ("test", "train")]
            assert [f"{number:.2f}" for number in [*ours, theirs["test"], theirs["train"]]] == numbers


def test_the_table_of_depth_aware_networks_is_that_of_the_results() -> None:
    """GPN as it was trained in the same fleet, and depth-aware GPN: test (training) accuracy."""
    results = CHECKOUT / "docs" / "results"
    repeated, runs = (pd.read_csv(results / name / "runs.csv", keep_default_na=False) for name in ("repeated", "paper"))
    page = (CHECKOUT / "docs" / "depth-aware.md").read_text()
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \(([\d.]+)\) \| \*\*([\d.]+)\*\* \(([\d.]+)\) \|", page, re.M)
    assert len(rows) == len(repeated) == (runs["separation"] != "").sum() == 5
    for label, *numbers in rows:
        [name] = (key for key, text in ACTIVATION_LABELS.items() if text == label)
        both = repeated[repeated["activation"] == name], runs[(runs["activation"] == name) & (runs["separation"] != "")]
        ours = [float(run[f"{split}_accuracy"].item()) for run in both for split in ("test", "train")]
        assert [f"{number:.2f}" for number in ours] == numbers


def test_the_tables_of_batch_normalisation_are_those_of_the_results() -> None:
    """By learning rate with gains of 1, and by the start of the gains at a rate of 1e-3."""
    runs = pd.read_csv(CHECKOUT / "docs" / "results" / "batch_norm" / "runs.csv", keep_default_na=False)
    rates = ("optim.lr=0.000316", "optim.lr=0.001", "optim.lr=0.00316", "optim.lr=0.01")

    def number(name: str, setting: str) -> str:
        chosen = runs[(runs["activation"] == name.removesuffix("_gpn")) & (runs["gpn"] == name.endswith("_gpn"))]
        [run] = chosen[chosen["protocol"].str.startswith(f"{setting},")].to_dict("records")
        return "diverged" if run["status"] == "diverged" else f"{float(run['test_accuracy']):.2f}"

    page = (CHECKOUT / "docs" / "reproduction.md").read_text()
    rows = re.findall(
        r"^\| (\w+)(-GPN)? \| [^|]+ \| " + r"([\d.]+|diverged) \| " * 3 + r"([\d.]+|diverged) \|$", page, re.M
    )
    assert len(rows) == 6
    for label, gpn, *numbers in rows:
        [name] = (key for key, text in ACTIVATION_LABELS.items() if text == label)
        assert numbers == [number(name + gpn.lower().replace("-", "_"), rate) for rate in rates]
    starts = {"1 (H200, TF32)": "optim.lr=0.001", "U(0, 1) (": "model.norm_init=uniform"}
    for start, setting in starts.items():
        [line] = (line for line in page.splitlines() if line.startswith(f"| {start}"))
        shown = [cell.strip() for cell in line.split("|")[2:-1]]
        assert shown == [number(name, setting) for name in ("elu", "selu", "tanh", "gelu")]


def test_the_table_of_optimisers_is_that_of_the_results() -> None:
    """The rate with the highest mean validation accuracy, the smallest of equal ones, and the runs at it."""
    runs = pd.read_csv(CHECKOUT / "docs" / "results" / "optimisers" / "runs.csv")
    runs["kind"] = runs["protocol"].str.extract(r"optim\.kind=(\w+)")[0].fillna("sgd")
    runs["lr"] = runs["protocol"].str.extract(r"optim\.lr=([\d.e-]+)")[0].fillna("1e-4").astype(float)
    runs["label"] = runs["activation"] + runs["gpn"].map({True: "_gpn", False: ""})
    page = (CHECKOUT / "docs" / "approaches.md").read_text()
    rows = re.findall(
        r"^\| (\w+)(-GPN)? \| ([\d.]+) \| ([\d.]+ ± [\d.]+) \| ([\d.]+) \| ([\d.]+ ± [\d.]+) \|$", page, re.M
    )
    assert len(rows) == runs["label"].nunique() == 6
    for label, gpn, *said in rows:
        [name] = (key for key, text in ACTIVATION_LABELS.items() if text == label)
        mine = runs[runs["label"] == name + gpn.lower().replace("-", "_")]
        for kind, rate, accuracy in (("sgd", *said[:2]), ("adamw", *said[2:])):
            tried = mine[(mine["kind"] == kind) & (mine["status"] == "done")]
            assert tried["lr"].nunique() >= 5
            best = tried.groupby("lr")["validation_accuracy"].mean().round(9).idxmax()
            chosen = tried[tried["lr"] == best]["test_accuracy"]
            assert (float(rate), len(chosen)) == (best, 3)
            assert accuracy == f"{chosen.mean():.2f} ± {chosen.std():.2f}"


APPROACHES = {
    "residual, with batch normalisation": "residual",
    "batch normalisation": "batch_norm",
    "layer normalisation": "layer_norm",
    "group normalisation": "group_norm",
    "weight normalisation": "weight_norm",
    "spectral normalisation": "spectral_norm",
    "LSUV start": "lsuv",
    "self-normalising": "self_normalizing",
    "dynamical isometry": "dynamical_isometry",
    "Glorot start": "glorot",
}
"""Approaches as the page on them names them; GPN, depth-aware GPN and the linear network are forms of `bsnn`."""


def network_of(config: dict[str, Any]) -> tuple[str, str]:
    """Return approach and activation of a network, in the words of the page."""
    name, activation = config["activation"]["name"], config["activation"]
    if config["approach"] in APPROACHES.values():
        [approach] = (label for label, key in APPROACHES.items() if key == config["approach"])
        return approach, ACTIVATION_LABELS[name]
    if name == "identity":
        return "linear", "–"
    return "depth-aware GPN" if activation["separation"] else "GPN", ACTIVATION_LABELS[name]


def test_the_table_of_approaches_is_that_of_the_results() -> None:
    """At the rate with the highest mean validation accuracy, the smallest of equal ones."""
    results = CHECKOUT / "docs" / "results" / "approaches"
    runs = pd.read_csv(results / "runs.csv")
    folders = {path.name: path for path in results.glob("runs/*/*/*")}
    configs = [
        yaml.load((folders[f"{identity}-s{seed}"] / "config.yaml").read_text(), yaml.CSafeLoader)
        for identity, seed in zip(runs["identity"], runs["seed"], strict=True)
    ]
    runs["network"], runs["rate"] = list(map(network_of, configs)), [config["optim"]["lr"] for config in configs]
    rows = re.findall(
        r"^\| ([^|]+) \| (\S+) \| ([\d.]+) \| ([^|]+) \| ([^|]+) \| [^|]+ \| (\d) of 7 \| \d+ \|$",
        (CHECKOUT / "docs" / "approaches.md").read_text(),
        re.M,
    )
    assert {row[:2] for row in rows} == set(runs["network"])
    assert len(rows) == 22
    for approach, activation, rate, *shown, trains in rows:
        by_rate = runs[runs["network"] == (approach, activation)].groupby("rate")
        validation = by_rate["validation_accuracy"].mean()
        assert len(validation) == 7
        assert (float(rate), int(trains)) == (validation.round(9).idxmax(), (validation >= 20).sum())
        best = by_rate.get_group(float(rate))
        for text, numbers in zip(shown, (best["validation_accuracy"], best["test_accuracy"]), strict=True):
            said = f"{float(numbers.mean()):.2f}"
            if len(numbers) > 1:
                half = stats.t.ppf(0.975, len(numbers) - 1) * numbers.std() / len(numbers) ** 0.5
                said += f" ± {float(numbers.std()):.2f} [±{float(half):.2f}]"
            assert text == said


def test_the_accuracies_of_convolutional_networks_are_those_of_the_results() -> None:
    runs = pd.read_csv(CHECKOUT / "docs" / "results" / "convolution" / "runs.csv").set_index(["activation", "gpn"])
    page = (CHECKOUT / "docs" / "theory.md").read_text()
    [said] = re.findall(r"^\| test accuracy \(%\) \| (.+) \|$", page, re.M)
    order = [("selu", True), ("selu", False), ("relu", True), ("relu", False)]
    assert said.split(" | ") == [f"{runs.loc[key, 'test_accuracy']:.2f}" for key in order]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (CHECKOUT / page).read_text()):
        assert ((CHECKOUT / page).parent / target).exists(), target
