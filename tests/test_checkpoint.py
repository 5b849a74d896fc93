from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from bsnn_cli.errors import CheckpointError
from bsnn_cli.runs import checkpoint
from bsnn_cli.runs.checkpoint import CURRENT, PREVIOUS


def state(value: float) -> dict[str, Any]:
    return {
        "epoch": int(value),
        "records": [{"loss": value}, {"loss": None}],
        "tensors": {"V": torch.full((3, 4), value)},
    }


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    original = state(1.0) | {"steps": torch.tensor(7), "strided": torch.arange(6.0).view(2, 3).T}
    checkpoint.save(tmp_path / "c.pt", original)
    loaded = checkpoint.load(tmp_path / "c.pt")
    assert checkpoint.digest(loaded) == checkpoint.digest(original)
    assert loaded["records"] == original["records"]
    assert torch.equal(loaded["strided"], original["strided"])


def test_a_view_takes_no_more_of_the_disk_than_its_own_values(tmp_path: Path) -> None:
    whole = torch.arange(30000.0).view(3, 100, 100)
    for name, tensor in {"view": whole[1], "own": whole[1].clone()}.items():
        checkpoint.save(tmp_path / name, {"tensors": {"V": tensor, "steps": torch.tensor([7, 8])[1]}})
    assert (tmp_path / "view").stat().st_size == (tmp_path / "own").stat().st_size < 45000
    assert torch.equal(checkpoint.load(tmp_path / "view")["tensors"]["V"], whole[1])


@pytest.mark.parametrize(
    "other",
    [
        state(2.0),
        state(1.0) | {"epoch": 2},
        state(1.0) | {"tensors": {"W": torch.full((3, 4), 1.0)}},
        state(1.0) | {"tensors": {"V": torch.full((4, 3), 1.0)}},
        state(1.0) | {"tensors": {"V": torch.full((3, 4), 1.0, dtype=torch.float64)}},
    ],
)
def test_digest_tells_states_apart(other: dict[str, Any]) -> None:
    assert checkpoint.digest(state(1.0)) != checkpoint.digest(other)


def test_the_newest_and_the_one_before_are_kept(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) == (None, [])
    for value in (1.0, 2.0, 3.0):
        checkpoint.rotate(tmp_path, state(value))
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, CURRENT]
    assert checkpoint.load(tmp_path / CURRENT)["epoch"] == 3
    assert checkpoint.load(tmp_path / PREVIOUS)["epoch"] == 2
    checkpoint.discard(tmp_path)
    assert list(tmp_path.iterdir()) == []


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = content.index(torch.full((3,), 2.0).numpy().tobytes())  # inside the tensor: only the digest sees it
    content[at] ^= 1
    path.write_bytes(content)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "emptied": lambda path: path.write_bytes(b""),
    "bit flipped": flip_a_bit,
    "foreign": lambda path: torch.save({"model": torch.zeros(3)}, path),
    "a plain pickle": lambda path: path.write_bytes(pickle.dumps(Payload(path.with_name("executed")))),
    "carrying code": lambda path: torch.save({"sha256": "", "state": Payload(path.with_name("executed"))}, path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_and_never_executed(damage: str, tmp_path: Path) -> None:
    checkpoint.rotate(tmp_path, state(1.0))
    checkpoint.rotate(tmp_path, state(2.0))
    DAMAGE[damage](tmp_path / CURRENT)
    loaded, [warning] = checkpoint.newest(tmp_path)
    assert loaded is not None
    assert loaded["epoch"] == 1
    assert str(tmp_path / CURRENT) in warning
    assert not (tmp_path / "executed").exists()


def test_a_deleted_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    checkpoint.rotate(tmp_path, state(1.0))
    checkpoint.rotate(tmp_path, state(2.0))
    (tmp_path / CURRENT).unlink()
    loaded, warnings = checkpoint.newest(tmp_path)
    assert loaded is not None
    assert (loaded["epoch"], warnings) == (1, [])


def test_no_readable_checkpoint_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    checkpoint.rotate(tmp_path, state(1.0))
    checkpoint.rotate(tmp_path, state(2.0))
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="force=true"):
        checkpoint.newest(tmp_path)


def test_a_failing_write_leaves_the_old_state_and_no_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.rotate(tmp_path, state(1.0))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.rotate(tmp_path, state(2.0))
    assert [path.name for path in tmp_path.iterdir()] == [CURRENT]
    assert checkpoint.load(tmp_path / CURRENT)["epoch"] == 1
