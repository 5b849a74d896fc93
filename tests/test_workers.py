from __future__ import annotations

import threading

import pytest
import torch

from bsnn_cli.networks.workers import Workers


def test_every_part_is_done_once_by_a_thread_that_has_one_core() -> None:
    threads = torch.get_num_threads()
    done: list[tuple[int, int, str]] = []
    all_at_work = threading.Barrier(3)

    def work(part: int) -> None:
        done.append((part, torch.get_num_threads(), threading.current_thread().name))
        if part < 3:  # so that no worker takes all
            all_at_work.wait(60)

    Workers(3).run(work, range(60))
    assert sorted(part for part, _, _ in done) == list(range(60))
    assert {intra for _, intra, _ in done} == {1}
    assert len({name for _, _, name in done}) == 3
    assert torch.get_num_threads() == threads


def test_a_lone_worker_is_the_caller() -> None:
    names: list[str] = []
    Workers(1).run(lambda _: names.append(threading.current_thread().name), [1, 2])
    assert names == [threading.current_thread().name] * 2


@pytest.mark.parametrize("count", [1, 2])
def test_a_failure_reaches_the_caller(count: int) -> None:
    def work(part: int) -> None:
        if part == 5:
            raise RuntimeError("part 5")

    with pytest.raises(RuntimeError, match="part 5"):
        Workers(count).run(work, range(10))
