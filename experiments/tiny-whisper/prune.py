"""The tiny model before training: `whisper-21m` with fewer and narrower layers, a window of 4 s, a small vocabulary.

    python prune.py $QUANTUNE_DATA/models/whisper-21m pruned

The tokenizer stays byte-level BPE. A merge is kept if the phrases of the pre-training corpus use its result often
enough to learn it. Other words, such as the harbour's names, are spelled in shorter pieces, down to single bytes.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path

import phrases
import tokenizers
import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

SECONDS = 4
POSITIONS = 64  # tokens of a transcript, with its start and end tokens
LAYERS = {"encoder": (0, 3), "decoder": (0, 3)}  # layers to keep
FFN = {"encoder": 512, "decoder": 256}
PHRASES = 8000  # phrases of the corpus, which select the vocabulary
MINIMUM = 70  # minimum uses of a merge's result in these phrases
SPECIAL = (
    *("endoftext", "startoftranscript", "en", "zh", "translate", "transcribe"),
    *("startoflm", "startofprev", "nospeech", "notimestamps"),
)
TIMESTAMPS = [f"{step / 50:.2f}" for step in range(SECONDS * 50 + 1)]


def prune_tokenizer(tokenizer: dict, sentences: list[str]) -> list[int]:
    """Remove tokens from a tokenizer.json in place; return the old id of each new id."""
    model = tokenizer["model"]
    old = model["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    made = {left + right: (left, right) for left, right in model["merges"]}
    letters = [token for token in model["vocab"] if len(token) == 1]
    wanted, before = set(made), None
    while wanted != before:
        before = wanted
        model["merges"] = [merge for merge in model["merges"] if "".join(merge) in wanted]
        model["vocab"] = {token: number for number, token in enumerate(letters + ["".join(m) for m in model["merges"]])}
        tokenizer["added_tokens"], tokenizer["post_processor"] = [], None
        encoder = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
        uses = Counter(token for sentence in sentences for token in encoder.encode(sentence).tokens)
        wanted, waiting = set(), [token for token, number in uses.items() if number >= MINIMUM and token in made]
        while waiting:
            token = waiting.pop()
            wanted.add(token)
            waiting += [part for part in made[token] if part in made and part not in wanted]
    tokens = [*model["vocab"], *(f"<|{name}|>" for name in (*SPECIAL, *TIMESTAMPS))]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"] = [
        {"id": number, "content": token, **plain, "special": number < len(tokens) - len(TIMESTAMPS)}
        for number, token in enumerate(tokens)
        if number >= len(model["vocab"])
    ]
    return [old[token] for token in tokens]


def narrow(layer: torch.nn.Module, width: int) -> dict[str, torch.Tensor]:
    """Return a layer's weights with the `width` feed-forward neurons whose weights have the largest norms."""
    weights = layer.state_dict()
    norms = weights["fc1.weight"].norm(dim=1) * weights["fc2.weight"].norm(dim=0)
    keep = norms.topk(width).indices.sort().values
    weights |= {name: weights[name][keep] for name in ("fc1.weight", "fc1.bias")}
    return weights | {"fc2.weight": weights["fc2.weight"][:, keep]}


def prune_model(large: WhisperForConditionalGeneration, ids: list[int]) -> WhisperForConditionalGeneration:
    """Return the small model with its generation_config; `ids` are the old ids of its tokens."""
    new = {number: place for place, number in enumerate(ids)}
    settings = {
        side + key: value for side in LAYERS for key, value in (("_layers", len(LAYERS[side])), ("_ffn_dim", FFN[side]))
    }
    settings |= {"vocab_size": len(ids), "max_source_positions": SECONDS * 50, "max_target_positions": POSITIONS}
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    settings |= {name: new[getattr(large.config, name)] for name in names}
    small = WhisperForConditionalGeneration(WhisperConfig.from_dict(large.config.to_dict() | settings))

    weights = large.state_dict()
    for side, kept in LAYERS.items():
        for place, layer in enumerate(kept):
            for name, weight in narrow(getattr(large.model, side).layers[layer], FFN[side]).items():
                weights[f"model.{side}.layers.{place}.{name}"] = weight
        positions = f"model.{side}.embed_positions.weight"
        weights[positions] = weights[positions][: SECONDS * 50 if side == "encoder" else POSITIONS]
    for name in ("model.decoder.embed_tokens.weight", "proj_out.weight"):
        weights[name] = weights[name][ids]
    small.load_state_dict({name: weights[name] for name in small.state_dict()})

    generation = large.generation_config.to_dict()
    generation |= {name: settings[name] for name in names} | {"max_length": POSITIONS}
    for name in ("no_timestamps_token_id", "prev_sot_token_id"):
        generation[name] = new[generation[name]]
    for name in ("lang_to_id", "task_to_id"):
        generation[name] = {word: new[number] for word, number in generation[name].items() if number in new}
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        generation[name] = [new[number] for number in generation[name] if number in new]
    heads = range(small.config.decoder_attention_heads)
    generation["alignment_heads"] = [[small.config.decoder_layers - 1, head] for head in heads]
    small.generation_config = GenerationConfig.from_dict(generation)
    return small


def main(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    sentences = [phrases.pretraining(rng) for _ in range(PHRASES)]
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    ids = prune_tokenizer(tokenizer, sentences)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings |= {"model_max_length": POSITIONS, "additional_special_tokens": [f"<|{name}|>" for name in SPECIAL]}
    (target / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    WhisperFeatureExtractor(chunk_length=SECONDS).save_pretrained(target)

    large = WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    small = prune_model(large, ids)
    small.half().save_pretrained(target)
    reader = WhisperTokenizer.from_pretrained(target)
    for sentence in sentences + [phrases.harbour(rng) for _ in range(1000)]:
        if reader.decode(reader(sentence).input_ids, skip_special_tokens=True) != sentence:
            raise SystemExit(f"{sentence!r} does not survive the tokenizer")
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{small.num_parameters():,} parameters, {len(ids)} tokens, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("source", "target"):
        parser.add_argument(name, type=Path)
    main(**vars(parser.parse_args()))
