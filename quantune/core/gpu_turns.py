"""One job, one GPU: jobs on a machine take turns at its GPUs.

A GPU is taken by a lock on a file, which the kernel releases however the job ends. The files lie in the machine's
folder for temporary files, so that runs of different work folders take turns too.

A job says at its start that it will need a GPU, and takes one when it asks for the device (`loading.device`): it
imports and reads its data while another job still computes.
"""

import fcntl
import os
import sys
import tempfile
import time

from quantune.core import hardware

WAIT = 0.5  # seconds between two looks for a free GPU
_held: list[int] = []  # open files: a lock lasts as long as its file is open
_wanted: list[bool] = []  # whether everything is wanted; empty if nothing is
_waited: list[tuple[float, float]] = []  # until when, and how many seconds


def want(everything: bool = False) -> None:
    """Declare that this process will compute on a GPU, or on all of them."""
    _wanted[:] = [everything]


def take_wanted() -> None:
    """Take what `want` declared, once. Waiting is no part of a job's time: see `waited`."""
    if not _wanted:
        return
    everything, started = _wanted.pop(), time.time()
    taken = take(everything)
    _waited.append((time.time(), time.time() - started))
    torch = sys.modules.get("torch")
    if taken and not everything and torch and torch.cuda.is_initialized():  # too late to hide the others
        uuids = [str(torch.cuda.get_device_properties(number).uuid) for number in range(torch.cuda.device_count())]
        torch.cuda.set_device(uuids.index(taken[0].removeprefix("GPU-")))


def waited(since: float) -> float:
    """Return the seconds that this process waited for a GPU since a time."""
    return sum(seconds for until, seconds in _waited if until > since)


def take(everything: bool = False) -> list[str]:
    """Wait for a GPU, take it for as long as this process lives, and hide the others from a CUDA that is not started.

    Args:
        everything: take all of them and hide none, so that nothing else computes meanwhile.

    Returns:
        The UUIDs of what was taken: none without a GPU, nor where `CUDA_VISIBLE_DEVICES` names parts of a GPU (MIG),
        which whoever named them has shared out already.
    """
    there = [gpu["uuid"] for gpu in hardware.gpus()]
    if not there or "MIG" in os.environ.get("CUDA_VISIBLE_DEVICES", ""):
        return []
    if everything:
        for uuid in sorted(there):  # in one order everywhere: two that take all never wait for each other
            _first_free([uuid])
        return there
    uuid = _first_free(there)
    os.environ["CUDA_VISIBLE_DEVICES"] = uuid
    return [uuid]


def _first_free(there: list[str]) -> str:
    """Wait until one of these GPUs is free, and take it."""
    told = False
    while True:
        for uuid in there:
            if _lock(uuid):
                return uuid
        if not told:
            print("waiting for a free GPU: other jobs of this machine hold", ", ".join(there), file=sys.stderr)
            told = True
        time.sleep(WAIT)


def _lock(uuid: str) -> bool:
    """Take the lock of a GPU if no other process holds it."""
    path = os.path.join(tempfile.gettempdir(), f"quantune-{os.getuid()}-{uuid}.lock")
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    _held.append(file)
    return True
