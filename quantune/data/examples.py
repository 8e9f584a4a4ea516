"""Prepared data as a model reads it: text or speech, by the model's kind."""

from pathlib import Path

from quantune.data import speech, text
from quantune.data.batches import Data
from quantune.models import loading


def read(
    prepared: Path,
    split: str,
    checkpoint: Path,
    length: int,
    task: speech.Task = "transcribe",
    packing: bool = True,
    end_of_text: bool = True,
) -> Data:
    """Return a split as examples of the model in a checkpoint folder, to train on or to calibrate with.

    Args:
        prepared: the folder of the prepared dataset.
        split: its split.
        checkpoint: the model's folder.
        length: tokens in a block of text, or the most of a document; speech has the length of its transcripts.
        task: for a speech model: write a transcript, or an English translation.
        packing: for text: join documents and cut them into blocks; else each document is an example, padded in a batch.
        end_of_text: for documents that are not joined: whether the end-of-text token follows each.

    Raises:
        QuantuneError: if the split is too small, or no example fits into the model.
    """
    config = loading.config(checkpoint)
    if loading.is_speech(checkpoint):
        processor, multilingual = loading.processor(checkpoint), speech.knows_languages(checkpoint)
        return speech.Examples(prepared, split, task, processor, config.max_target_positions, multilingual)
    text.require_length(config, length)
    tokenizer = loading.tokenizer(checkpoint)
    if packing:
        return text.Blocks(text.blocks(prepared, split, tokenizer.eos_token_id, length))
    return text.Documents(prepared, split, tokenizer, length, end_of_text)
