"""Threads for work that falls into independent parts, each done by one core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

Part = TypeVar("Part")


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """PyTorch works with so many threads inside each operation: one where operations are done side by side.

    A factorisation of one matrix does not get faster by threads, and where other programs compete for the cores far
    slower; nor do its digits depend on the number of threads then. This holds for the thread that enters. A thread
    started within takes the number of OMP_NUM_THREADS, so a pool has to be told again.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Workers:
    """As many threads as torch has on a CPU, with torch on one thread in each of them.

    One operation after the other, each on all cores, sends the tensors of a part from core to core, and operations on
    a few thousand values are below the size that torch shares out at all. What comes out of a part does not depend on
    the worker that does it, so neither does the result of all.

    Args:
        count: of threads; 1 leaves the work to the caller.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) if count > 1 else None

    def each(self, work: Callable[[Part], None], parts: Sequence[Part]) -> None:
        """Call `work` with every part; whoever is free takes the next one. A lone part is left to the caller.

        Raises:
            whatever `work` raised, once all workers have stopped.
        """
        if self._pool is None or len(parts) == 1:
            for part in parts:
                work(part)
            return
        queue = iter(parts)
        futures = [self._pool.submit(_drain, work, queue) for _ in range(self.count)]
        wait(futures)
        for future in futures:
            future.result()


def _drain(work: Callable[[Part], None], queue: Iterator[Part]) -> None:
    """Work until nothing is left. That `next` of a sequence's iterator is one operation lets them share it."""
    for part in queue:
        work(part)
