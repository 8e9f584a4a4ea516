"""The tokenizer of a model in a GGUF file, built with the library `tokenizers` from the file's metadata.

transformers 5.17 builds one, too, but with GPT-2's splitting of words for every byte-level tokenizer, and with the
first token in place of the last one for Llama. Here each splitting is that of the models that name it.
"""

import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from quantune.core.errors import QuantuneError, listed
from quantune.models.foreign.gguf_files import Header

SPACE = "▁"  # stands for a blank in SentencePiece
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
ENDS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = {
    "gpt-2": None,
    "smollm": r"\p{N}",
    "qwen2": CONTRACTIONS + r"\p{N}" + ENDS,
    "llama-bpe": CONTRACTIONS + r"\p{N}{1,3}" + ENDS,
}
"""`tokenizer.ggml.pre` -> how the texts are split before the byte-level pairs are merged: GPT-2's words alone (None),
after taking out digits (SmolLM), or these words (Qwen2, Llama 3; from their tokenizer.json)."""
ALIASES = {"gpt2": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
"""Other names of the same ways, as llama.cpp has them."""
CONTROL, USER = 3, 4
"""Values of `tokenizer.ggml.token_type`: special tokens, and tokens that are never split."""
REMEDY = "give the original model in Hugging Face layout"


def write(header: Header, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template of a GGUF file; `header` has its texts.

    Raises:
        QuantuneError: if the tokenizer is of another kind, or a key is missing or damaged.
    """
    tokens = _get(header, "tokens", list)
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise QuantuneError(
            f"{header.name}: 'tokenizer.ggml.model' is {kind!r:.40}; allowed: gpt2 (byte-level pairs), llama "
            f"(SentencePiece); {REMEDY}"
        )
    if len(set(tokens)) != len(tokens):
        raise QuantuneError(f"{header.name}: 'tokenizer.ggml.tokens' names a token twice; {REMEDY}")
    tokenizer = _byte_level(header, tokens) if kind == "gpt2" else _sentence_piece(header, tokens)
    kinds = header.metadata.get("tokenizer.ggml.token_type")
    kinds = kinds if isinstance(kinds, list) else []
    added = [
        AddedToken(token, special=number == CONTROL, normalized=False)
        for token, number in zip(tokens, kinds, strict=False)
        if number in (CONTROL, USER)
    ]
    tokenizer.add_tokens(added)
    special = {f"{name}_token": _special(header, key, tokens) for name, key in SPECIAL.items()}
    _begin_with(tokenizer, header, kind, special)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **{k: v for k, v in special.items() if v}
    )
    template = header.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        made.chat_template = template
    made.save_pretrained(folder)


SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def _special(header: Header, key: str, tokens: list[str]) -> str | None:
    """Return the special token of this kind, or None."""
    number = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
    if number is not None and not (type(number) is int and 0 <= number < len(tokens)):
        raise QuantuneError(
            f"{header.name}: 'tokenizer.ggml.{key}_token_id' is {number!r:.40}; allowed: 0 to {len(tokens) - 1:,}; "
            f"{REMEDY}"
        )
    return None if number is None else tokens[number]


def _begin_with(tokenizer: Tokenizer, header: Header, kind: str, special: dict[str, str | None]) -> None:
    """Let the tokenizer put the token of the beginning before a text, and that of the end after it, as the file says.

    Without a key, SentencePiece and Llama 3 begin a text with a token, as in llama.cpp.
    """
    default = kind == "llama" or _splitting(header) == "llama-bpe"
    around = {
        "bos_token": header.metadata.get("tokenizer.ggml.add_bos_token", default),
        "eos_token": header.metadata.get("tokenizer.ggml.add_eos_token", False),
    }
    begin, end = (special[name] if wanted else None for name, wanted in around.items())
    if begin or end:
        one = [item for item in (begin, "$A", end) if item]
        two = [item for item in (begin, "$B", end) if item]
        used = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(filter(None, (begin, end)))]
        after = processors.TemplateProcessing(
            single=_escaped(one), pair=[*_escaped(one), *(f"{item}:1" for item in _escaped(two))], special_tokens=used
        )
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, after] if kind == "gpt2" else [after])


def _escaped(items: list[str]) -> list[str]:
    """Return the items of a template; a colon in a token would be read as a number of a sequence."""
    return [item if item.startswith("$") or ":" not in item else f"{item}:0" for item in items]


def _splitting(header: Header) -> str:
    """Return the name of the rule; a file without it does not say how its texts are split."""
    name = header.metadata.get("tokenizer.ggml.pre")
    return ALIASES.get(name, name) if isinstance(name, str) else "not given"


def _byte_level(header: Header, tokens: list[str]) -> Tokenizer:
    """Return a tokenizer of byte-level pairs, as GPT-2, Llama 3 and Qwen have."""
    name = _splitting(header)
    if name not in WORDS:
        raise QuantuneError(
            f"{header.name}: 'tokenizer.ggml.pre' is {name!r:.40}, a way to split texts that is not known; allowed: "
            f"{listed(WORDS)}; {REMEDY}"
        )
    merges = [tuple(merge.split(" ")) for merge in _get(header, "merges", list)]
    if any(len(pair) != 2 for pair in merges):
        raise QuantuneError(f"{header.name}: 'tokenizer.ggml.merges' holds something else than pairs; {REMEDY}")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(_model(header, vocabulary, merges, ignore_merges=name == "llama-bpe"))
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    pattern = WORDS[name]
    parts = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name in ("gpt-2", "smollm"))]
    if pattern:
        parts.insert(0, pre_tokenizers.Split(Regex(pattern), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _sentence_piece(header: Header, tokens: list[str]) -> Tokenizer:
    """Return a tokenizer of SentencePiece's pairs, as Llama 2 and Mistral have: a pair is as good as its score."""
    scores = _get(header, "scores", list)
    if len(scores) != len(tokens):
        raise QuantuneError(f"{header.name}: 'tokenizer.ggml.scores' has {len(scores):,} scores; {REMEDY}")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [
        (-scores[number], vocabulary[token[:cut]], token[:cut], token[cut:])
        for token, number in vocabulary.items()
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    merges = [(left, right) for _, _, left, right in sorted(pairs)]
    unknown = _special(header, "unknown", tokens)
    fallback = any(re.fullmatch(r"<0x[0-9A-F]{2}>", token) for token in tokens)
    tokenizer = Tokenizer(_model(header, vocabulary, merges, byte_fallback=fallback, fuse_unk=True, unk_token=unknown))
    blank = normalizers.Replace(" ", SPACE)
    decoded = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if header.metadata.get("tokenizer.ggml.add_space_prefix", True):
        blank = normalizers.Sequence([normalizers.Prepend(SPACE), blank])
        decoded.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer, tokenizer.decoder = blank, decoders.Sequence(decoded)
    return tokenizer


def _model(header: Header, vocabulary: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> BPE:
    try:
        return BPE(vocabulary, merges, **options)
    except Exception as error:  # the class that tokenizers raises
        raise QuantuneError(f"{header.name}: its tokens and merges do not fit ({error!s:.120}); {REMEDY}") from None


def _get(header: Header, key: str, kind: type) -> Any:
    value = header.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, kind) or not value:
        raise QuantuneError(f"{header.name}: 'tokenizer.ggml.{key}' is missing or empty; {REMEDY}")
    return value
