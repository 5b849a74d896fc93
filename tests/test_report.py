"""The report in a real browser: what it shows is what is stored, and choosing changes the picture."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from bsnn_cli import cli
from bsnn_cli.common.files import write_json
from bsnn_cli.report import archive, provenance_table, report_plots, report_tables
from bsnn_cli.report.report import context, render, write_report
from bsnn_cli.results import tables
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import ACTIVATION_LABELS
from tests.drawing import measured, theorised
from tests.storage import PROVENANCE, store

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


def fill(root: Path) -> Results:
    """Runs at the published protocol and beside it, signals, theory."""
    store(root, "tanh", [50.0, 96.576])
    store(root, "tanh_gpn", [60.0, 95.5])
    store(root, "relu", [])
    store(root, "selu_gpn", [70.0, 97.0], seed=0)
    store(root, "selu_gpn", [70.0, 98.0], seed=1)
    store(root, "elu_gpn", [10.0, 11.0], dataset="cifar10", model__norm="batch")
    store(root, "gelu_gpn", [33.0], dataset="digits", optim__epochs=1)
    store(root, "tanh_gpn", [50.0] * 20, dataset="digits", optim__epochs=20)
    for weights, accuracy in (("unit_rows", 90.0), ("orthogonal", 91.5)):
        store(root, "selu_gpn", [accuracy], optim__epochs=1, model__weights=weights)
    for activation in ("tanh", "tanh_gpn", "relu", "selu_gpn"):
        measured(root, activation)
    measured(root, "tanh_gpn_d")
    measured(root, "selu_gpn_d", separation=0.1)
    measured(root, "gelu_gpn", approach="bsnn")
    theorised(root)
    return Results(root)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Results:
    stored = fill(tmp_path_factory.mktemp("report") / "outputs")
    tables.write_tables(stored.runs, stored.root / "tables")
    write_report(stored)
    return stored


@pytest.fixture(scope="module")
def browser(filled: Results, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium with the report open."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*QUIET.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}", "--window-size=1200,1000"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.get((filled.root / "report" / "index.html").as_uri())
    yield driver
    driver.quit()


def cells(browser: Any, dataset: str, split: str) -> dict[str, list[str]]:
    """A table of the published protocol as a reader sees it: by row label."""
    script = """
        const [dataset, split] = arguments, where = `[data-dataset="${dataset}"][data-split="${split}"]`;
        const table = document.querySelector(`table[data-protocol=paper]${where}`);
        return [...table.querySelectorAll("tbody tr")].map(row => [...row.children].map(cell => cell.textContent));
    """
    return {label: numbers for label, *numbers in browser.execute_script(script, dataset, split)}


def test_the_page_is_whole_without_network_and_without_errors(browser: Any) -> None:
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(browser.get_screenshot_as_base64())))
    every_fourth = pixels[::4, ::4].reshape(-1, pixels.shape[-1])
    assert len(np.unique(every_fourth, axis=0)) > 100
    width = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]


def test_tables_have_the_numbers_of_the_csv_beside_the_published_ones(browser: Any, filled: Results) -> None:
    shown = cells(browser, "MNIST", "test")
    assert shown["Tanh"] == ["96.58", "96.57", "+0.01", "95.50", "95.54", "−0.04"]
    assert shown["ReLU"][0] == "diverged"
    assert shown["SELU"][3] == "97.50 ± 0.71 [n=2]"
    assert shown["GELU"][0] == shown["GELU"][3] == "–"
    for split in ("test", "train"):
        csv = pd.read_csv(filled.root / "tables" / f"{split}_accuracy.csv")
        rows = csv[(csv["protocol"] == "paper") & (csv["n"] > 0)]
        assert len(rows) == 4
        for row in rows.to_dict("records"):
            table = cells(browser, "MNIST" if row["dataset"] == "mnist" else "CIFAR-10", split)
            label = ACTIVATION_LABELS[row["activation"]] + (" + batch norm" if row["batch_norm"] else "")
            assert table[label][3 if row["gpn"] else 0].startswith(f"{row['mean']:.2f}")


def test_choosing_an_activation_changes_the_plot(browser: Any) -> None:
    def drawn() -> list[str]:
        script = """
            const plot = document.querySelector(".plot[data-plot=signals]");
            return [...plot.querySelectorAll(".legendtext")].map(entry => entry.textContent);
        """
        return list(browser.execute_script(script))

    assert drawn() == ["Tanh", "Tanh-GPN", "Tanh-GPN-d", "SELU-GPN"]
    click = "document.querySelector(`.plot[data-plot=signals] input[value=${arguments[0]}]`).click()"
    browser.execute_script(click, "ReLU")
    assert drawn() == ["Tanh", "Tanh-GPN", "Tanh-GPN-d", "ReLU", "SELU-GPN"]
    browser.execute_script(click, "Tanh")
    assert drawn() == ["ReLU", "SELU-GPN"]


def test_ticks_of_the_epochs_are_whole(browser: Any) -> None:
    script = """
        const plot = document.querySelector(".plot[data-plot=curves]"), select = plot.querySelector("select");
        return [...select.options].map(option => {
            select.value = option.value;
            select.onchange();
            return [...plot.querySelectorAll(".xtick text")].map(tick => tick.textContent);
        });
    """
    published, _, longer = browser.execute_script(script)
    assert published == ["1", "2"]
    assert longer[-1] == "20"
    assert all(tick.isdigit() for tick in longer)


def test_a_cell_leads_to_the_config_of_its_runs(browser: Any) -> None:
    script = """
        document.querySelector("table[data-protocol=paper][data-dataset=MNIST] a").click();
        return new Promise(done => setTimeout(() => {
            const run = document.querySelector(location.hash);
            done([run.open, run.textContent, run.querySelector("a").href]);
        }, 200));
    """
    is_open, text, href = browser.execute_script(script)
    assert is_open
    assert "bsnn train activation=tanh dataset=mnist optim" not in text
    assert "bsnn train activation=tanh dataset=mnist seed=0" in text
    assert "lr: 0.0001" in text
    assert Path(href.removeprefix("file://")).is_file()


def test_plots_hold_what_is_stored(filled: Results) -> None:
    made = report_plots.plots(filled)
    layers = pd.read_csv(next(filled.root.glob("propagation/tanh/*/layers.csv")))
    [line] = [each for each in made["signals"]["series"] if each["name"] == "Tanh" and each["panel"] == 0]
    assert line["y"] == [float(f"{value:.5g}") for value in layers["forward_norm"]]
    tailored = {each["name"] for each in made["signals"]["series"] if each["name"].endswith("-d")}
    assert tailored == {"Tanh-GPN-d"}  # of the default separation; that of SELU is another
    curves = {each["facet"]: each for each in made["curves"]["series"] if each["name"] == "SELU-GPN"}
    assert curves["MNIST: the published protocol"]["y"] == [70.0, 97.5]
    assert curves["MNIST: the published protocol"]["high"] == [70.0, 98.207]
    assert {"theorems", "lengths", "angles"} <= set(made)
    assert made["lengths"]["panels"][0]["y"] == "‖x<sup>l+1</sup>‖<sup>2</sup>/n"
    assert "Test accuracy on MNIST" in made["curves"]["captions"]["MNIST: the published protocol"]
    assert "widths" not in made  # one width, one repeat


@pytest.mark.parametrize(
    ("difference", "level"),
    [(0.0, "same"), (1.0, "same"), (-1.01, "down-1"), (4.9, "up-1"), (-19, "down-2"), (-20.5, "down-3"), (88, "up-3")],
)
def test_colours_follow_the_size_of_a_difference(difference: float, level: str) -> None:
    assert report_tables.level(difference) == level


def test_nobody_s_paths_and_names_leave_the_machine(filled: Results) -> None:
    page = (filled.root / "report" / "index.html").read_text()
    assert PROVENANCE["host"] not in page
    assert "/home/somebody" not in page
    assert str(filled.root) not in page
    assert "01234567" in page


def test_a_plot_without_numbers_is_left_out(filled: Results) -> None:
    content = context(filled)
    assert "data-plot" in render(content)
    assert "data-plot" not in render(content | {"plots": {}})


def test_an_empty_folder_makes_a_page_of_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.dispatch(["report"]) == 0
    assert capsys.readouterr().out.strip() == os.path.join("outputs", "report", "index.html")
    page = Path("outputs/report/index.html").read_text()
    assert "<code>bsnn reproduce profile=short</code>" in page
    assert "Plotly" not in page
    assert not re.search(r"(src|href)=\"https?://(?!arxiv)", page)


def test_a_resumed_run_has_begun_with_its_first_session(tmp_path: Path) -> None:
    sessions = [{"started": f"2026-01-0{day}T00:00:00+00:00", "ended": None, "torch": f"2.{day}"} for day in (1, 2, 3)]
    *earlier, last = sessions
    write_json(
        tmp_path / "provenance.json", {**last, "ended": "2026-01-04T00:00:00+00:00", "earlier_sessions": earlier}
    )
    shown = provenance_table.of_directory(tmp_path)
    assert (shown["started"], shown["ended"]) == ("2026-01-01T00:00:00+00:00", "2026-01-04T00:00:00+00:00")
    assert shown["torch"] == "2.3"
    assert json.loads(archive.neutral_provenance((tmp_path / "provenance.json").read_text())) == shown
    write_json(tmp_path / "provenance.json", {**last, "earlier_sessions": []})
    assert provenance_table.of_directory(tmp_path)["started"] == last["started"]
    write_json(tmp_path / "provenance.json", last)  # an export, or a measurement
    assert provenance_table.of_directory(tmp_path)["started"] == last["started"]
