"""Huge pages, where Linux gives them; and nothing at all where it does not."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

import pytest
import torch

from bsnn_cli.networks import huge_pages
from bsnn_cli.networks.huge_pages import in_huge_pages
from bsnn_cli.settings.config import ModelConfig
from tests.test_fleet import make_fleet, make_member

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
GIVEN = ENABLED.is_file() and "[never]" not in ENABLED.read_text()
COLLAPSES = GIVEN and tuple(map(int, re.findall(r"\d+", platform.release())[:2])) >= (6, 1)
"""Older systems put memory that is in use already into huge pages some time later, on their own."""


def huge_bytes(address: int) -> int:
    """Return how many bytes are in huge pages, in the mapping around an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(mapping[1], 16) <= address < int(mapping[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(f"no mapping at {address:x}")


@pytest.mark.skipif(not COLLAPSES, reason="this system gives no huge pages at once")
@pytest.mark.parametrize("used", [False, True])
def test_memory_is_in_huge_pages_before_and_after_its_first_use(used: bool) -> None:
    size = 64 * 2**20
    tensor = torch.empty(size, dtype=torch.uint8)
    if used:
        tensor.fill_(7)
    assert in_huge_pages(tensor) is tensor
    if not used:
        tensor.fill_(7)
    assert (tensor == 7).all()
    assert huge_bytes(tensor.data_ptr() + size // 2) >= size / 2  # a full machine may have less than all of them


@pytest.mark.skipif(not COLLAPSES, reason="this system gives no huge pages at once")
def test_the_weights_of_a_network_are() -> None:
    fleet = make_fleet(ModelConfig(depth=10, width=1000), [make_member("tanh", True)], dtype=torch.float32)
    for name in ("hidden.weight", "momentum.hidden.weight"):
        tensor = fleet.tensors[name]
        assert huge_bytes(tensor.data_ptr() + tensor.nbytes // 2) >= tensor.nbytes / 2


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    huge_pages._madvise.cache_clear()
    try:
        tensor = torch.ones(huge_pages.WORTHWHILE)
        assert in_huge_pages(tensor) is tensor
        assert (tensor == 1).all()
    finally:
        huge_pages._madvise.cache_clear()
