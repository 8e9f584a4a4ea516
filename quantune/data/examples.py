"""Prepared data as a model reads it: text or speech, by the model's kind."""

from pathlib import Path

from quantune.data import speech, text
from quantune.data.batches import Data
from quantune.models import loading


def read(prepared: Path, split: str, checkpoint: Path, length: int, task: speech.Task = "transcribe") -> Data:
    """Return a split as examples of the model in a checkpoint folder, to train on or to calibrate with.

    Args:
        prepared: the folder of the prepared dataset.
        split: its split.
        checkpoint: the model's folder.
        length: tokens in a block of text; speech has the length of its transcripts.
        task: for a speech model: write a transcript, or an English translation.

    Raises:
        QuantuneError: if the split is too small, or no example fits into the model.
    """
    config = loading.config(checkpoint)
    if loading.is_speech(checkpoint):
        processor, multilingual = loading.processor(checkpoint), speech.knows_languages(checkpoint)
        return speech.Examples(prepared, split, task, processor, config.max_target_positions, multilingual)
    text.require_length(config, length)
    return text.Blocks(text.blocks(prepared, split, loading.tokenizer(checkpoint).eos_token_id, length))
