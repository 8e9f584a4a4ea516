"""The clips of a prepared split, mapped from disk: only clips that are used are read."""

from pathlib import Path
from typing import Literal

import numpy
import pyarrow

from quantune.core.errors import QuantuneError, listed, nearest
from quantune.sources import audio

Task = Literal["transcribe", "translate"]
SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("text", pyarrow.string()),
        ("translation", pyarrow.string()),
        ("language", pyarrow.string()),
        ("seconds", pyarrow.float64()),
        ("samples", pyarrow.large_binary()),
    ]
)


class Clips:
    """The clips of a split at a model's sampling rate, with their transcripts."""

    def __init__(self, prepared: Path, split: str):
        path = Path(prepared) / f"{split}.arrow"
        if not path.exists():
            names = [item.stem for item in Path(prepared).glob("*.arrow")]
            raise QuantuneError(f"'{prepared}' has no split '{split}'; splits: {listed(names)}{nearest(split, names)}")
        with pyarrow.memory_map(str(path)) as source:
            self.table = pyarrow.ipc.open_file(source).read_all()

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> list:
        """Return the ids, texts, translations, languages or seconds."""
        return self.table[name].to_pylist()

    def __getitem__(self, number: int) -> numpy.ndarray:
        """Return a clip's samples, shape (frames,), float32 in [-1, 1]."""
        return audio.from_pcm(numpy.frombuffer(self.table["samples"][number].as_buffer(), dtype="<i2"))

    def texts(self, task: Task) -> list[str]:
        """Return the text to write for each clip: its transcript, or its translation.

        Raises:
            QuantuneError: if a clip has no translation.
        """
        texts = self.column("text" if task == "transcribe" else "translation")
        if not all(texts):
            missing = sum(not text for text in texts)
            raise QuantuneError(
                f"{missing} of {len(texts)} clips have no translation; name its column in 'translation'"
            )
        return texts
