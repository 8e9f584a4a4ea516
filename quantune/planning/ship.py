"""The key `ship`: what a variant may take and lose to be recommended."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from quantune.core import units
from quantune.core.errors import listed, nearest
from quantune.core.recipe import LARGEST_BATCH, Entry, Name

LARGEST = {"memory": 1e15, "loss": 1.0, "latency": 3600.0}
"""The largest value of each limit, in bytes, as a share, in seconds."""


def _measure(name: str, of_units: dict[str, float], example: str) -> Any:
    """Return the type of a limit that is written with its unit; its value is in bytes, a share, or seconds."""
    return Annotated[
        float,
        BeforeValidator(_reader(name, of_units, example)),
        WithJsonSchema({"type": "string", "pattern": units.pattern(of_units), "examples": [example]}),
    ]


def _reader(name: str, of_units: dict[str, float], example: str) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        number = units.parse(value, of_units) if isinstance(value, str) else None
        if number is None:
            kinds = listed(of_units)
            raise ValueError(f"a number with a unit expected, such as '{example}', found {value!r:.40}; units: {kinds}")
        if not 0 < number <= LARGEST[name]:
            most = {"memory": "1,000 TB", "loss": "100 %", "latency": "3,600 s"}[name]
            raise ValueError(f"must be above 0 and at most {most}, found {value!r:.40}")
        return number

    return read


class Ship(Entry):
    """Limits of the variant to ship. The report names, for each model, the variant that meets them, and why."""

    memory: _measure("memory", units.SIZES, "4 GB") | None = None
    """Most memory that the variant may take: if `benchmark` measured it, device memory at its peak (on a CPU: bytes of
    its tensors); else the size of its files on disk. No limit without this key."""
    loss: _measure("loss", units.SHARES, "1 %") | None = None
    """Most that the variant may lose against its model at full precision, on every one of `evaluations`: of perplexity
    in per cent, of an error rate in points. No limit without this key; other parts of the report then speak of 1 %."""
    latency: _measure("latency", units.TIMES, "30 ms") | None = None
    """Longest time to the next token of a text model, or to the transcripts of a batch of a speech model, in the
    slowest repeat; needs `benchmark`. No limit without this key."""
    batch: Annotated[int, Field(gt=0, le=LARGEST_BATCH)] | None = None
    """One of the benchmark's `batch_sizes`, at which memory and latency count; null: the first of them."""
    evaluations: Annotated[list[Name], Field(min_length=1)] | None = None
    """Evaluations on which `loss` counts; null: all that end in a number."""


def problems(ship: Ship | None, evaluations: dict[str, Any], benchmark: Any) -> Iterator[str]:
    """Yield the limits that nothing measures, and evaluations that do not exist."""
    if ship is None:
        return
    for key in ("latency", "batch"):
        if getattr(ship, key) is not None and not benchmark:
            how = "write 'benchmark: {}', or leave it out"
            yield f"ship.{key}: needs the section 'benchmark', which measures it; {how}"
    if ship.batch is not None and benchmark and ship.batch not in benchmark.batch_sizes:
        sizes = listed(benchmark.batch_sizes)
        yield f"ship.batch: {ship.batch} is not measured; allowed: {sizes}, or add it to 'benchmark.batch_sizes'"
    known = [name for name, entry in evaluations.items() if entry.numbers]
    if ship.loss is not None and not known:
        yield "ship.loss: needs an evaluation that ends in a number, such as 'kind: perplexity'"
    for name in ship.evaluations or ():
        if name not in known:
            hint = f"allowed: {listed(known)}{nearest(name, known)}"
            yield f"ship.evaluations: '{name}' is not an evaluation that ends in a number; {hint}"
