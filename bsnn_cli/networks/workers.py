"""Threads for work that consists of independent parts, each done by one core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

Part = TypeVar("Part")


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Let PyTorch use this many threads inside each operation; 1 where several operations run at the same time.

    More threads do not make the factorisation of one matrix faster. Where other programs compete for the cores they
    make it far slower, and its digits depend on their number. The number holds for the thread that enters; a thread
    started within takes that of OMP_NUM_THREADS, so a pool has to set it again.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


SHARED_WEIGHTS = 1_000_000
"""From so many hidden weights on, a step takes longer than handing parts of it to other cores."""


def threads_for(weights: int) -> int:
    """Return how many of PyTorch's threads shall work on networks of so many hidden weights.

    Small ones gain nothing from several, and lose much where other programs keep the cores busy: the threads wait for
    each other at the end of each operation.
    """
    return torch.get_num_threads() if weights >= SHARED_WEIGHTS else 1


class Workers:
    """A pool of threads in which PyTorch's operations use one thread each.

    If each operation used all cores instead, the tensors of a part would move from core to core, and PyTorch does not
    split operations on a few thousand values at all. The result of a part does not depend on the worker that does it.

    Args:
        count: of threads; 1 leaves the work to the caller.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) if count > 1 else None

    def run(self, work: Callable[[Part], None], parts: Sequence[Part]) -> None:
        """Call `work` with every part; a free worker takes the next one. A single part is left to the caller.

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
    """Work until nothing is left. Threads can share the iterator of a sequence, as its `next` is one operation."""
    for part in queue:
        work(part)
