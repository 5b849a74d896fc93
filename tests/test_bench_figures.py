"""Figures of a benchmark whose numbers are made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tests.drawing import built


def benched(root: Path, growth: bool = True) -> pd.DataFrame:
    """Store a `bench.csv`: plain at 100 ms, ours at 50, arithmetic at 40; growth like depth, width², networks."""
    common = {"depth": 200, "width": 500, "networks": 1, "batch_size": 64, "norm": "none", "weights": "unit_rows"}
    common |= {"activation": "selu_gpn", "precision": "fp32", "device": "cpu", "threads": 2}
    rows = [
        {"comparison": "main", "implementation": name, "step_ms": ms, **common}
        for name, ms in (("plain", 100.0), ("bsnn", 50.0), ("arithmetic", 40.0))
    ]
    if growth:
        for comparison, power, sizes in (("depth", 1, (50, 200)), ("width", 2, (250, 500)), ("networks", 1, (1, 2))):
            for size in sizes:
                time = 50.0 * (size / int(common[comparison])) ** power
                for name, ms in (("bsnn", time), ("traffic", 0.8 * time)):
                    sized = common | {comparison: size, "limit_ms": 0.8 * time}
                    rows.append({"comparison": comparison, "implementation": name, "step_ms": ms, **sized})
    table = pd.DataFrame(rows)
    table["step_ms_low"], table["step_ms_high"] = 0.9 * table["step_ms"], 1.25 * table["step_ms"]
    table["network_steps_per_s"] = 1e3 * table["networks"] / table["step_ms"]
    table["ratio_to_plain"] = 100 / table["step_ms"]
    (root / "bench").mkdir(parents=True)
    table.to_csv(root / "bench" / "bench.csv", index=False)
    return table


def test_speeds_are_dots_between_their_quartiles(tmp_path: Path) -> None:
    benched(tmp_path)
    (picture, _), _ = built(tmp_path, "bench")
    [ax] = picture.figure.axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["its arithmetic alone", "bsnn", "plain PyTorch"]
    dots = [bars.lines[0].get_xdata(orig=False)[0] for bars in ax.containers]
    np.testing.assert_allclose(dots, [25, 20, 10])
    [[low, high]] = ax.containers[1].lines[2][0].get_segments()
    np.testing.assert_allclose([low[0], high[0]], [16, 1e3 / 45])
    assert [text.get_text() for text in ax.texts if text.get_text()] == [
        *("2.00×", "200 layers of 500 units, SELU-GPN, no normalisation, unit rows"),
    ]


def test_growth_shows_the_power_law_of_each_size(tmp_path: Path) -> None:
    table = benched(tmp_path)
    (_, picture), _ = built(tmp_path, "bench")
    titles = [ax.get_title() for ax in picture.figure.axes]
    assert titles == ["~ depth$^{1.00}$", "~ width$^{2.00}$", "~ networks$^{1.00}$"]
    for ax, name in zip(picture.figure.axes, ("depth", "width", "networks"), strict=True):
        own = table[(table["comparison"] == name) & (table["implementation"] == "bsnn")]
        fit, dots, _, limit = ax.lines
        np.testing.assert_array_equal(limit.get_ydata(), 0.8 * own["step_ms"])
        np.testing.assert_allclose(fit.get_ydata(), own["step_ms"])
        np.testing.assert_array_equal(dots.get_ydata(), own["step_ms"])


def test_growth_that_was_not_measured_is_named(tmp_path: Path) -> None:
    benched(tmp_path, growth=False)
    [_], [missing] = built(tmp_path, "bench")
    assert missing.command == f"bsnn bench growth=true output_root={tmp_path}"


def test_a_file_of_an_earlier_version_shows_what_was_called_the_floor(tmp_path: Path) -> None:
    table = benched(tmp_path).drop(columns="limit_ms").replace({"implementation": {"traffic": "floor"}})
    table.to_csv(tmp_path / "bench" / "bench.csv", index=False)
    (_, picture), _ = built(tmp_path, "bench")
    np.testing.assert_allclose(picture.figure.axes[0].lines[3].get_ydata(), [10, 40])
    assert [text.get_text() for text in picture.figure.legends[0].get_texts()] == ["bsnn", "products"]
