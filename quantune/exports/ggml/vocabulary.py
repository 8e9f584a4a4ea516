"""The vocabulary of a GGUF file, from the tokenizer that transformers loads.

llama.cpp knows the rule that splits a text before its merges by a name (`tokenizer.ggml.pre`), and holds the regular
expressions itself (`llama-vocab.cpp`). The name is found here by the rule of the tokenizer, not by its vocabulary, so a
tokenizer that somebody trained is exported too. A rule without a name is refused: llama.cpp would silently split texts
in another way.
"""

import json
from pathlib import Path
from typing import Any

import gguf

from quantune.core.errors import QuantuneError, listed
from quantune.models import loading, stored

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
RULES = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", LLAMA_3), ("ByteLevel", False)): "llama-bpe",
    (("Split", QWEN_2), ("ByteLevel", False)): "qwen2",
}
"""Steps before the merges -> llama.cpp's name of them."""
WHOLE_FIRST = ("llama-bpe",)
"""Rules with which llama.cpp takes a word that is a token as it is, without merges (`ignore_merges`)."""
SPACE = "\u2581"
END_ROLES = ("eos", "eot", "eom")
"""llama.cpp's names of the tokens that end a generation: the first is written as EOS."""


def add_vocabulary(writer: gguf.GGUFWriter, checkpoint: Path, size: int) -> None:
    """Write tokens, merges, special tokens and the chat template.

    Args:
        writer: of the file.
        checkpoint: the folder of the model.
        size: rows of the token embeddings; rows without a token get an unused one.

    Raises:
        QuantuneError: if llama.cpp would split texts in another way than this tokenizer.
    """
    tokenizer = loading.tokenizer(checkpoint)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend else {}
    model = state.get("model", {})
    if model.get("type") != "BPE":
        kind = model.get("type", "SentencePiece")
        raise QuantuneError(f"the tokenizer is of type {kind}; GGUF holds BPE alone; export 'safetensors'")
    rule = split_rule(state)
    writer.add_tokenizer_model("llama" if rule == "default" else "gpt2")
    writer.add_tokenizer_pre(rule)
    tokens, types = tokens_and_types(state, size, in_pieces=rule == "default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"]]
    if rule == "default":
        writer.add_token_scores(scores(tokens, merges))
        writer.add_add_space_prefix(begins_with_space(state))
    else:
        writer.add_token_merges([" ".join(part.replace(" ", "\u0120") for part in pair) for pair in merges])
    add_special(writer, tokenizer, checkpoint)
    if template := tokenizer.chat_template:
        if isinstance(template, dict):
            template = [{"name": name, "template": text} for name, text in template.items()]
        writer.add_chat_template(template)


def split_rule(state: dict[str, Any]) -> str:
    """Return llama.cpp's name of the rule that splits a text before the merges; "default" for pieces with spaces.

    Args:
        state: tokenizer.json.

    Raises:
        QuantuneError: if it has no name for the rule.
    """
    model, steps = state["model"], flattened(state["pre_tokenizer"], "pretokenizers")
    normalizers = [step["type"] for step in flattened(state["normalizer"], "normalizers")]
    kinds = {step["type"] for step in steps}
    if model.get("byte_fallback") and "ByteLevel" not in kinds:
        if kinds <= {"Metaspace"} and set(normalizers) <= {"Prepend", "Replace"}:
            return "default"
    else:
        rule = RULES.get(tuple(map(signature, steps)))
        plain = not any(step.get("add_prefix_space") or step.get("invert") for step in steps)
        whole_first = bool(model.get("ignore_merges")) == (rule in WHOLE_FIRST)
        if rule and plain and whole_first and set(normalizers) <= {"NFC"}:
            return rule
    described = listed(f"{kind} {value}".strip() for kind, value in map(signature, steps))
    raise QuantuneError(
        f"llama.cpp has no rule that splits texts as this tokenizer does ({described}); known: those of "
        f"{listed(RULES.values())} and of Llama 2; export 'safetensors'"
    )


def flattened(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or of a pre-tokenizer, those of sequences one by one."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [inner for item in step[key] for inner in flattened(item, key)]


def signature(step: dict[str, Any]) -> tuple[str, Any]:
    """Return the type of a step, and the setting that tells rules apart."""
    settings = {"ByteLevel": step.get("use_regex", True), "Digits": step.get("individual_digits", False)}
    if step["type"] == "Split":
        settings["Split"] = step["pattern"].get("Regex", step["pattern"].get("String"))
    return step["type"], settings.get(step["type"], "")


def tokens_and_types(state: dict[str, Any], size: int, in_pieces: bool) -> tuple[list[str], list[int]]:
    """Return the token and its type of each id; raises QuantuneError if a token has no row of embeddings.

    Args:
        state: tokenizer.json.
        size: rows of the token embeddings.
        in_pieces: whether tokens are pieces of text with bytes as a fallback, as in Llama 2.
    """
    kinds = gguf.TokenType
    texts = {number: (text, kinds.NORMAL) for text, number in state["model"]["vocab"].items()}
    if in_pieces:
        texts |= {number: (text, kinds.BYTE) for number, (text, _) in texts.items() if is_byte(text)}
    for token in state["added_tokens"]:
        texts[token["id"]] = token["content"], kinds.CONTROL if token["special"] else kinds.USER_DEFINED
    unknown = state["model"].get("unk_token")
    if in_pieces and unknown in state["model"]["vocab"]:
        texts[state["model"]["vocab"][unknown]] = unknown, kinds.UNKNOWN
    if (largest := max(texts)) >= size:
        raise QuantuneError(
            f"the tokenizer has the token {largest}, and the model only {size} rows of embeddings; export 'safetensors'"
        )
    filled = [texts.get(number, (f"[PAD{number}]", kinds.UNUSED)) for number in range(size)]
    return [text for text, _ in filled], [int(kind) for _, kind in filled]


def is_byte(text: str) -> bool:
    """Return whether a token stands for one byte: <0x0A>."""
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """Return the score of each token: llama.cpp merges to the piece with the highest one first, as the merges do."""
    first: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        first.setdefault(left + right, rank)
    return [-float(first.get(token, len(merges))) for token in tokens]


def begins_with_space(state: dict[str, Any]) -> bool:
    """Return whether a space is put before a text."""
    if any(step["type"] == "Prepend" for step in flattened(state["normalizer"], "normalizers")):
        return True
    steps = flattened(state["pre_tokenizer"], "pretokenizers")
    return any(step.get("prepend_scheme") in ("always", "first") for step in steps)


def add_special(writer: gguf.GGUFWriter, tokenizer, checkpoint: Path) -> None:
    """Write the special tokens, and which of them stand around every text.

    Raises:
        QuantuneError: if the tokenizer puts other tokens around a text than its BOS and EOS.
    """
    bare, whole = tokenizer("a", add_special_tokens=False).input_ids, tokenizer("a").input_ids
    begin = next(place for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
    before, after = whole[:begin], whole[begin + len(bare) :]
    ends = ending_tokens(checkpoint, tokenizer)
    bos = before[0] if before else tokenizer.bos_token_id
    if len(before) > 1 or len(after) > 1 or (after and after[0] != ends[0]):
        around = listed(map(repr, tokenizer.convert_ids_to_tokens([*before, *after])))
        raise QuantuneError(
            f"the tokenizer puts {around} around a text; llama.cpp puts one BOS and one EOS at "
            "most; export 'safetensors'"
        )
    if bos is not None:
        writer.add_bos_token_id(bos)
    for role, number in zip(END_ROLES, ends, strict=False):
        getattr(writer, f"add_{role}_token_id")(number)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(bool(before))
    writer.add_add_eos_token(bool(after))


def ending_tokens(checkpoint: Path, tokenizer) -> list[int]:
    """Return the tokens that end a generation, as `generate` of transformers reads them; empty if none is known."""
    for name in (stored.GENERATION, stored.CONFIG):
        if (path := checkpoint / name).is_file() and (known := stored.read_json(path).get("eos_token_id")) is not None:
            return known if isinstance(known, list) else [known]
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
