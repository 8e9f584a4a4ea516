"""Prepared data as a model reads it: text or speech, by the model's kind."""

from pathlib import Path
from typing import Literal

from quantune.data import packing as packs
from quantune.data import responses, speech, text
from quantune.data.batches import Data
from quantune.data.columns import holds_responses
from quantune.models import loading


def read(
    prepared: Path,
    split: str,
    checkpoint: Path,
    length: int,
    task: speech.Task = "transcribe",
    packing: bool | Literal["separate"] = True,
    end_of_text: bool = True,
    loss_on: responses.LossOn | None = None,
    most: int | None = None,
) -> Data:
    """Return a split as examples of the model in a checkpoint folder, to train on or to calibrate with.

    Args:
        prepared: the folder of the prepared dataset.
        split: its split.
        checkpoint: the model's folder.
        length: tokens in a block of text, or the most of a document; speech has the length of its transcripts.
        task: for a speech model: write a transcript, or an English translation.
        packing: for text: join documents and cut them into blocks; "separate", and for conversations: put whole ones
            into sequences, without attention from one to another; false: each is an example, padded in a batch.
        end_of_text: for documents that are not joined: whether the end-of-text token follows each.
        loss_on: for conversations: the tokens that the loss counts; None: all responses.
        most: the number of documents, conversations or clips that are read, from the first; None: all.

    Raises:
        QuantuneError: if the split is too small, or no example fits into the model.
    """
    config = loading.config(checkpoint)
    if loading.is_speech(checkpoint):
        processor, multilingual = loading.processor(checkpoint), speech.knows_languages(checkpoint)
        return speech.Examples(prepared, split, task, processor, config.max_target_positions, multilingual, most)
    text.require_length(config, length)
    tokenizer = loading.tokenizer(checkpoint)
    if holds_responses(prepared, split):
        documents = responses.Conversations(prepared, split, tokenizer, length, loss_on or "responses", most)
    elif packing is True:
        return text.Blocks(text.blocks(prepared, split, tokenizer.eos_token_id, length, most))
    else:
        documents = text.Documents(prepared, split, tokenizer, length, end_of_text, most)
    return packs.Packed(documents) if packing else documents
