"""Convert pickled weights (`pytorch_model.bin`) to safetensors, in a process without network that loads tensors alone.

A pickle can run code when it is loaded. torch's weights-only reader builds tensors and plain values, and refuses
everything else. As a second wall, the process that reads has no credentials and no network, and starts no programs.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantune.core.errors import QuantuneError
from quantune.models import stored, tensor_files

ROOT = Path(__file__).parents[3]
KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
"""Environment variables of the process that reads; credentials are not among them."""
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # of Linux's `unshare`
REFUSED = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pty.")
"""Beginnings of the names of Python's audit events that the process does not allow."""
ALLOWED = "allowed: tensors alone, by name; give the original model's safetensors, or save `model.state_dict()` again"


def convert(paths: list[Path], folder: Path) -> list[Path]:
    """Write a model's pickled weights as safetensors: one file for each, and an index if there are several.

    Every tensor keeps its name, dtype and values. A tensor that two names share is written once, under its first name,
    unless config.json says that the embeddings are not tied. Memory holds one tensor at a time (the whole file, if
    torch before 1.6 wrote it). The same weights give the same bytes.

    Args:
        paths: the files of the model; config.json is among them.
        folder: replaced by a folder with the written files.

    Returns:
        The written files.

    Raises:
        QuantuneError: naming the file and the entry, if a pickle holds anything but tensors or is damaged.
    """
    by_name = {path.name: path for path in paths}
    named = stored.shards(by_name[stored.PICKLE_INDEX]) if stored.PICKLE_INDEX in by_name else {}
    files = sorted(set(named.values())) or [stored.PICKLE]
    count = len(files)
    made = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    task = {
        "tied": stored.read_json(by_name[stored.CONFIG]).get("tie_word_embeddings") is not False,
        "pairs": [
            (str(by_name[file].resolve()), str(folder.resolve() / (new if named else stored.SINGLE)))
            for file, new in zip(files, made, strict=True)
        ],
    }
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    written = _in_a_process_of_its_own(task)
    names = {name for group in written.values() for name in group["stored"] + group["shared"]}
    if missing := sorted(set(named) - names):
        file = named[missing[0]]
        raise QuantuneError(
            f"{stored.PICKLE_INDEX}: names '{missing[0]}' in {file}, which does not hold it; {stored.AGAIN}"
        )
    if named:
        tensor_files.index(folder, {Path(file).name: group["stored"] for file, group in written.items()})
    return sorted(folder.iterdir())


def _in_a_process_of_its_own(task: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Return written file -> names of its tensors (`stored`), and of those that share one (`shared`)."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = kept | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-P", "-m", main.__module__, json.dumps(task)]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    answer = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    if "error" in answer:
        raise QuantuneError(answer["error"])
    if not answer:
        names = {number.value: number.name for number in signal.Signals}
        how = names.get(-done.returncode, f"exit code {done.returncode}")
        first = Path(task["pairs"][0][0]).name
        raise QuantuneError(
            f"{first}: the process that reads the pickled weights ended with {how}: the file is damaged, or memory is "
            f"short; {stored.AGAIN}, or give the process more memory"
        )
    return answer["written"]


def main() -> None:
    """Convert the files of a task (JSON, the first argument); print the answer as one line of JSON."""
    task = json.loads(sys.argv[1])
    _leave_network()
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    sys.addaudithook(_refuse)
    try:
        answer = {"written": {made: _convert(Path(path), Path(made), task["tied"]) for path, made in task["pairs"]}}
    except QuantuneError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


def _leave_network() -> None:
    """Move this process into a network namespace without any interface, where the kernel permits that."""
    unshare = getattr(ctypes.CDLL(None), "unshare", None)
    if unshare:  # Linux
        unshare(CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWUSER | CLONE_NEWNET)


def _refuse(event: str, _: tuple) -> None:
    """Forbid sockets and programs; an audit hook cannot be removed."""
    if event.startswith(REFUSED):
        raise PermissionError(f"'{event}' is not allowed while pickled weights are read")


def _convert(path: Path, made: Path, tied: bool) -> dict[str, list[str]]:
    """Write the tensors of one pickle as one safetensors file; see `_in_a_process_of_its_own`."""
    tensors, shared, seen = {}, [], set()
    for name, tensor in _tensors(path, _loaded(path)):
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tied and tensor.numel() and place in seen:
            shared.append(name)
        else:
            seen.add(place)
            tensors[name] = tensor
    described = {name: (_dtype(tensor), tensor.shape) for name, tensor in tensors.items()}
    tensor_files.write(made, described, lambda name: [tensor_files.array(tensors[name])])
    return {"stored": list(tensors), "shared": shared}


def _loaded(path: Path) -> Any:
    """Return the content of a pickle; raises QuantuneError if it holds more than tensors and plain values."""
    import pickle

    import torch

    with path.open("rb") as opened:
        archive = opened.read(4) == stored.ZIP  # files of torch before 1.6 cannot be mapped into memory
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        reason = _line(error).rpartition("WeightsUnpickler error: ")[2]
        reason = re.split(r"\.? (?:Please use|Check the doc)", reason)[0]
        if code := re.search(r"GLOBAL ([\w.]+)", reason):
            problem = f"holds '{code[1]:.90}', which is code or an object of Python, and is never loaded"
        else:
            problem = f"holds something else than tensors, or is damaged ({reason[:120]})"
        raise QuantuneError(f"{path.name}: {problem}; {ALLOWED}") from None
    except Exception as error:
        text = _line(error).partition(". ")[0][:120] or type(error).__name__
        problem = f"is damaged, cut off or no weights of torch ({text})"
        raise QuantuneError(f"{path.name}: {problem}; {stored.AGAIN}") from None


def _line(error: Exception) -> str:
    """Return the text of an error in one line; it may hold bytes of the file."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(error).split()))


def _tensors(path: Path, content: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and tensor of a state dict; raises QuantuneError, naming the entry, if it holds anything else."""
    import torch

    if not isinstance(content, dict) or not content:
        what = "no tensors" if isinstance(content, dict) else f"one {type(content).__name__}"
        raise QuantuneError(f"{path.name}: holds {what}; {ALLOWED}")
    for name, value in content.items():
        entry = f"{path.name}: the entry {name!r:.90}"
        if not isinstance(name, str) or not name.isprintable() or name in ("", "__metadata__"):
            raise QuantuneError(f"{entry} has no name of a tensor; {ALLOWED}")
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise QuantuneError(f"{entry} is of type {type(value).__name__}; {ALLOWED}")
        dtype, tensor = str(value.dtype).removeprefix("torch."), value.detach()
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
        if not plain or dtype not in tensor_files.STORED_AS or tensor.is_quantized:
            raise QuantuneError(f"{entry} is a tensor of another kind ({tensor.layout}, {dtype}); {ALLOWED}")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise QuantuneError(f"{entry} has the shape {list(tensor.shape)}, but fewer values; {stored.AGAIN}")
        yield name, tensor


def _dtype(tensor: Any) -> str:
    """Return the data type of safetensors of a torch tensor."""
    return tensor_files.STORED_AS[str(tensor.dtype).removeprefix("torch.")]


if __name__ == "__main__":
    main()
