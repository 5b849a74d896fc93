"""The cache of images gives back the bytes that were stored, or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

from bsnn_cli.datasets import cache as images_cache

BYTES = numpy.arange(100, dtype=numpy.uint8)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bsnn" / "images"


@pytest.mark.usefixtures("cache")
def test_parts_come_back_as_one() -> None:
    assert images_cache.load("a") is None
    images_cache.store("a", numpy.array([1, 2], numpy.int64), BYTES)
    found = images_cache.load("a")
    assert found is not None
    assert found[:16].view(numpy.int64).tolist() == [1, 2]
    assert numpy.array_equal(found[16:], BYTES)
    images_cache.store("a", BYTES[:3])
    assert numpy.array_equal(images_cache.load("a"), BYTES[:3])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncate, flip, empty, replace_by_a_folder])
def test_what_is_damaged_is_not_there(damage: Callable[[Path], None], cache: Path) -> None:
    images_cache.store("a", BYTES)
    damage(cache / "a")
    assert images_cache.load("a") is None
    images_cache.store("a", BYTES)
    assert damage is replace_by_a_folder or numpy.array_equal(images_cache.load("a"), BYTES)
    assert [path.name for path in cache.iterdir()] == ["a"]


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    images_cache.store("a", BYTES)
    assert images_cache.load("a") is None


def test_a_write_that_fails_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    images_cache.store("a", BYTES)
    assert list(cache.iterdir()) == []


def test_the_oldest_makes_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_cache, "ROOM", 300)
    for age, name in ((30, "old"), (20, "middle"), (10, "new")):
        images_cache.store(name, BYTES)
        os.utime(cache / name, (1_000_000 - age, 1_000_000 - age))
    assert sorted(path.name for path in cache.iterdir()) == ["middle", "new"]
    images_cache.store("large", numpy.zeros(301, numpy.uint8))
    assert sorted(path.name for path in cache.iterdir()) == ["middle", "new"]
