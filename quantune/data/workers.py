"""Work on batches in several processes; the results are in the order of the batches, and a few are in memory."""

import gc
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

AHEAD = 2  # batches that wait for each process

_work: Callable[[Any], Any]


@contextmanager
def pool(work: Callable[[Any], Any], processes: int) -> Iterator[Callable[[Iterable[Any]], Iterator[Any]]]:
    """Start processes; yield the function that yields the result of each batch, in their order.

    Args:
        work: takes a batch; batches and results are sent from process to process.
        processes: forked from this one, so they load nothing anew. They end with it, even if it is killed. With one,
            the work is done in this process.
    """
    if processes == 1:
        yield partial(map, work)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(work, os.getpid())) as executor:

        def mapped(batches: Iterable[Any]) -> Iterator[Any]:
            waiting: deque = deque()
            for batch in batches:
                waiting.append(executor.submit(_run, batch))
                if len(waiting) >= AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        try:
            yield mapped
        finally:
            executor.shutdown(cancel_futures=True)


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    global _work
    _work = work
    gc.freeze()  # what the parent had made is neither searched for garbage nor copied by that search
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has one core
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once its parent is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run(batch: Any) -> Any:
    return _work(batch)
