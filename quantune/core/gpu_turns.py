"""One job, one GPU: jobs on a machine take turns at its GPUs.

A GPU is taken by a lock on a file, which the kernel releases however the job ends. The files lie in the machine's
folder for temporary files, so that runs of different work folders take turns too.

A job declares at its start that it will need a GPU. It takes one when it requests the device (`loading.device`), so
that it imports and reads its data while another job still computes.
"""

import fcntl
import os
import sys
import tempfile
import time

from quantune.core import hardware

WAIT = 0.5  # seconds between two searches for a free GPU
_held: list[int] = []  # open files: a lock lasts as long as its file is open
_wanted: list[bool] = []  # one item, whether all GPUs are wanted; empty if none is wanted
_waited: list[tuple[float, float]] = []  # end of each wait (Unix time), and its seconds


def want(all_gpus: bool = False) -> None:
    """Declare that this process will compute on a GPU, or on all of them."""
    _wanted[:] = [all_gpus]


def take_wanted() -> None:
    """Take the GPUs that `want` declared, once. The time of waiting is not counted as the job's: see `waited`."""
    if not _wanted:
        return
    all_gpus, started = _wanted.pop(), time.time()
    taken = take(all_gpus)
    _waited.append((time.time(), time.time() - started))
    torch = sys.modules.get("torch")
    if taken and not all_gpus and torch and torch.cuda.is_initialized():  # too late to hide the others
        uuids = [str(torch.cuda.get_device_properties(number).uuid) for number in range(torch.cuda.device_count())]
        torch.cuda.set_device(uuids.index(taken[0].removeprefix("GPU-")))


def waited(since: float) -> float:
    """Return the seconds that this process waited for a GPU since a Unix time."""
    return sum(seconds for until, seconds in _waited if until > since)


def take(all_gpus: bool = False) -> list[str]:
    """Wait for a GPU, take it for as long as this process lives, and hide the others unless CUDA has started.

    Args:
        all_gpus: take all of them and hide none, so that no other job computes meanwhile.

    Returns:
        The UUIDs of the GPUs taken: none without a GPU, and none if `CUDA_VISIBLE_DEVICES` names parts of a GPU (MIG),
        which the user has already assigned to jobs.
    """
    uuids = [gpu["uuid"] for gpu in hardware.gpus()]
    if not uuids or "MIG" in os.environ.get("CUDA_VISIBLE_DEVICES", ""):
        return []
    if all_gpus:
        for uuid in sorted(uuids):  # one order in all processes: two that take all never wait for each other
            _first_free([uuid])
        return uuids
    uuid = _first_free(uuids)
    os.environ["CUDA_VISIBLE_DEVICES"] = uuid
    return [uuid]


def _first_free(uuids: list[str]) -> str:
    """Wait until one of these GPUs is free, take it, and return its UUID."""
    announced = False
    while True:
        for uuid in uuids:
            if _lock(uuid):
                return uuid
        if not announced:
            print("waiting for a free GPU: other jobs of this machine hold", ", ".join(uuids), file=sys.stderr)
            announced = True
        time.sleep(WAIT)


def _lock(uuid: str) -> bool:
    """Take the lock of a GPU if no other process holds it; return whether it was taken."""
    path = os.path.join(tempfile.gettempdir(), f"quantune-{os.getuid()}-{uuid}.lock")
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    _held.append(file)
    return True
