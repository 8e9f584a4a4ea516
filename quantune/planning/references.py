"""Problems of the datasets and splits that recipes name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from quantune.core.errors import listed, nearest

if TYPE_CHECKING:
    from quantune.planning.config import Config


def problems(config: Config) -> Iterator[str]:
    """Yield every problem."""
    yield from _references(config)
    yield from _others(config)
    yield from _unread(config)


def _references(config: Config) -> Iterator[str]:
    for section in ("quantizations", "finetunings", "evaluations"):
        for name, entry in getattr(config, section).items():
            for field, value in entry.model_dump().items():
                if value is None or not (field == "dataset" or field.endswith("split")):
                    continue
                known = config.datasets if field == "dataset" else None
                if known is None and entry.dataset in config.datasets:
                    known = config.datasets[entry.dataset].split_names()
                if known is not None and value not in known:
                    noun = "dataset" if field == "dataset" else f"split of the dataset '{entry.dataset}'"
                    hint = f"allowed: {listed(known)}{nearest(value, known)}"
                    yield f"{section}.{name}.{field}: '{value}' is not a {noun}; {hint}"


def _others(config: Config) -> Iterator[str]:
    """Yield the datasets beside `dataset` that do not exist, or lack the split that is read."""
    for name, entry in config.finetunings.items():
        for key, other, split in ((key, *item) for key, read in entry.other_data.items() for item in read.items()):
            where = f"finetunings.{name}.{key}.{other}"
            if other not in config.datasets:
                hint = f"allowed: {listed(config.datasets)}{nearest(other, config.datasets)}"
                yield f"{where}: '{other}' is not a dataset; {hint}"
            elif split not in (known := config.datasets[other].split_names()):
                why = ", the 'train_split'" if key == "mix" else ""
                yield f"{where}: it has no split '{split}'{why}; its splits: {listed(known)}{nearest(split, known)}"


def _unread(config: Config) -> Iterator[str]:
    """Yield the recipes that read their dataset in a way that it does not allow: translations, draws of text."""
    for section in ("finetunings", "evaluations"):
        for name, entry in getattr(config, section).items():
            dataset = config.datasets.get(getattr(entry, "dataset", None))
            if getattr(entry, "task", None) == "translate" and not getattr(dataset, "translation", True):
                reason = f"needs 'translation' of the dataset '{entry.dataset}': the column to write"
                yield f"{section}.{name}.task: 'translate' {reason}"
    for name, entry in config.quantizations.items():
        dataset = config.datasets.get(getattr(entry, "dataset", None))
        form = "is speech" if dataset and dataset.track == "speech" else "holds conversations"
        if dataset and (dataset.track == "speech" or dataset.chat) and entry.draw != "blocks":
            problem = f"'{entry.draw}' is for text, and '{entry.dataset}' {form}"
            yield f"quantizations.{name}.draw: {problem}; leave it out"
