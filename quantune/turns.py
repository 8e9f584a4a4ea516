"""One job, one GPU: jobs on a machine take turns at its GPUs.

A GPU is taken by a lock on a file, which the kernel releases however the job ends. The files lie in the machine's
folder for temporary files, so that runs of different work folders take turns too.
"""

import fcntl
import os
import sys
import tempfile
import time

from quantune import hardware

WAIT = 0.5  # seconds between two looks for a free GPU
_held: list[int] = []  # open files: a lock lasts as long as its file is open


def take(everything: bool = False) -> list[str]:
    """Wait for a GPU, take it for as long as this process lives, and hide the others; call it before torch is imported.

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
