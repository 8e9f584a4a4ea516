"""Perplexity over windows of a split; the log-likelihood of each window is kept.

Only the documents' own tokens are scored, never those that join documents. With `context: stream` a token's context is
all that precedes it in the window: documents joined by the end-of-text token, as in training. With `context: document`
it is its own document alone. Of conversations only the contents of responses are scored, each with its own conversation
before it; what the chat template adds, the end of a turn among it, is not scored, so that models with other templates
compare by bits per byte.

Non-overlapping windows (`stride: null`) are the protocol of the GPTQ and AWQ papers: the documents are joined, cut into
windows of `length` tokens, and a rest shorter than a window is left out; the first token of a window is only context.
With a stride, windows overlap and only the last `stride` tokens of each are scored, each with at least
`length - stride` tokens of context: slower, and closer to how a model is used
(https://huggingface.co/docs/transformers/perplexity).
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from quantune.core.recipe import LARGEST_BATCH, LONGEST, MANY, Dtype
from quantune.core.units import BYTES
from quantune.core.workload import Inference
from quantune.evaluations import Evaluation
from quantune.evaluations.metrics import names

if TYPE_CHECKING:
    from quantune.evaluations.metrics.metric import Measurement


class Perplexity(Evaluation):
    """How well a variant predicts a split."""

    numbers: ClassVar[tuple[str, ...]] = names.PERPLEXITIES
    version: ClassVar[int] = 2
    settings: ClassVar[frozenset[str]] = frozenset({"general"})

    kind: Literal["perplexity"]
    """Token perplexity, word perplexity and bits per byte."""
    dataset: str
    """Name of the dataset."""
    split: str = "test"
    """Split of the dataset to evaluate on."""
    length: int = Field(default=1024, gt=1, le=LONGEST)
    """Tokens in one window; at most the model's positions (2048 in the GPTQ and AWQ papers)."""
    stride: int | None = Field(default=None, gt=0, le=LONGEST)
    """Tokens by which overlapping windows advance; null: windows do not overlap."""
    max_windows: int | None = Field(default=None, gt=0, le=MANY)
    """Number of windows, from the first; null: all."""
    context: Literal["stream", "document"] = "stream"
    """Context of a token: the documents before it too, joined by the end-of-text token (stream), or only its own
    document (document; a conversation always). A published protocol that joins texts before it tokenizes them: `join`
    of the dataset."""
    batch_size: int = Field(default=1, gt=0, le=LARGEST_BATCH)
    """Windows evaluated together."""
    dtype: Dtype = "float32"
    """Dtype of the computation and of the weights that are not packed."""
    general: bool = False
    """Whether this is a general-domain set: a loss of quality by fine-tuning is shown as forgetting."""

    @model_validator(mode="after")
    def _stride_fits(self):
        if self.stride is not None and self.stride >= self.length:
            raise ValueError(f"stride {self.stride} must be below length {self.length}; null for no overlap")
        return self

    def windows(self, total: int, stride: int | None = None) -> list[tuple[int, int, int]]:
        """Return (begin, first scored, end) token positions of each window over `total` tokens."""
        stride = self.stride or stride
        if stride is None:
            begins = range(0, total - self.length + 1, self.length)
            return [(begin, begin + 1, begin + self.length) for begin in begins]
        spans, scored = [], 1
        while scored < total and (not spans or spans[-1][2] < total):
            end = min(max(scored + stride, self.length), total)
            spans.append((max(0, end - self.length), scored, end))
            scored = end
        return spans

    def spans(self, stream) -> list[tuple[int, int, int]]:
        """Return (begin, first scored, end) token positions of each window in a stream of documents.

        With `context: document`, windows of a document overlap by one token if `stride` is null: each token is scored
        once. Of conversations, only windows with a token of a response are returned.
        """
        chat = stream.marks is not None
        if self.context == "stream" and not chat:
            return self.windows(len(stream))[: self.max_windows]
        spans = []
        before = 0 if chat else 1  # tokens that begin a document; a chat template writes them itself
        for first, end in zip((stream.starts - before).tolist(), stream.ends.tolist(), strict=True):
            parts = self.windows(end - first, stride=self.length - 1)
            spans += [tuple(first + position for position in part) for part in parts]
        if chat:
            spans = [span for span in spans if stream.own[span[1] : span[2]].any()]
        return spans[: self.max_windows]

    def evaluate(self, variant, data: Path | None, folder: Path) -> dict[str, Any]:
        """Write `items.parquet`, a row a window: begin, tokens scored, their bytes and words, and their negative
        log-likelihood in nats (float64; not finite where a logit is not). Return the summary.

        Raises:
            QuantuneError: if the split is shorter than one window, or windows are longer than the model allows.
        """
        import numpy
        import pandas

        from quantune.core.errors import QuantuneError
        from quantune.data import text
        from quantune.evaluations.metrics import rates
        from quantune.models import adapters, finite, loading

        stream = text.stream(data, self.split, loading.tokenizer(variant.base), self.context == "document")
        spans = self.spans(stream)
        if not spans:
            raise QuantuneError(
                f"'{self.dataset}', split '{self.split}', has {len(stream)} tokens: too few for one window of"
                f" {self.length}; lower 'length'"
            )
        loaded = variant.model(self.dtype)
        text.require_length(loaded.config, self.length + adapters.virtual_tokens(loaded))
        items = pandas.DataFrame(
            {
                "begin": [begin for begin, _, _ in spans],
                "tokens": [int(stream.own[scored:end].sum()) for _, scored, end in spans],
                "bytes": [int(stream.bytes[scored:end].sum()) for _, scored, end in spans],
                "words": [int(stream.words[scored:end].sum()) for _, scored, end in spans],
                "nll": self._losses(loaded, stream, spans),
            }
        )
        items.to_parquet(folder / "items.parquet", index=False)
        broken = {} if numpy.isfinite(items.nll).all() else {"broken": finite.reason(loaded)}
        broken |= {} if stream.marks is None else {"responses": True}
        return {"kind": self.kind, "tokens_in_split": stream.scored(), **rates.perplexity(items), **broken}

    def _losses(self, model, stream, spans: list[tuple[int, int, int]]) -> list[float]:
        """Return each window's summed negative log-likelihood in nats, computed from float32 logits."""
        import torch
        from tqdm import tqdm

        losses = [0.0] * len(spans)
        order = sorted(range(len(spans)), key=lambda number: spans[number][0] - spans[number][2])  # little padding
        for first in tqdm(range(0, len(spans), self.batch_size), desc="perplexity", unit="batch"):
            batch = order[first : first + self.batch_size]
            longest = max(spans[number][2] - spans[number][0] for number in batch)
            tokens = torch.zeros(len(batch), longest, dtype=torch.long)
            for row, number in enumerate(batch):
                begin, _, end = spans[number]
                tokens[row, : end - begin] = torch.from_numpy(stream.ids[begin:end].astype("int64"))
            tokens = tokens.to(model.device)
            with torch.no_grad():
                logits = model(input_ids=tokens, use_cache=False).logits
            logits = logits[:, -longest:]  # without those of virtual tokens, which prompt tuning prepends
            for row, number in enumerate(batch):
                begin, scored, end = spans[number]
                predicted = logits[row, scored - begin - 1 : end - begin - 1].float()
                target = tokens[row, scored - begin : end - begin]
                nll = torch.nn.functional.cross_entropy(predicted, target, reduction="none")
                own = torch.from_numpy(stream.own[scored:end]).to(nll.device)
                losses[number] = float(nll.double()[own].sum())
        return losses

    def read(self, folder: Path, model: Path) -> "Measurement":
        """Return the windows, with their metric."""
        import pandas

        from quantune.evaluations.metrics.metric import PERPLEXITY, Measurement

        joined = "documents joined by the end-of-text token" if self.context == "stream" else "each document alone"
        details = {"context": f"{joined}; only the documents' own tokens are scored"}
        result = json.loads((folder / "result.json").read_text())
        if result.get("responses"):
            details = {"context": "each conversation alone; only the contents of its responses are scored"}
        broken = result.get("broken")
        return Measurement(PERPLEXITY, pandas.read_parquet(folder / "items.parquet"), details, broken=broken)

    def workload(self, config: dict[str, Any]) -> Inference:
        """Return the workload: a forward pass beside the last batch's logits, or the scoring of one window."""
        logits = self.batch_size * self.length * config["vocab_size"] * BYTES[self.dtype]
        window = self.length * config["vocab_size"] * BYTES["float32"]
        copied = 0 if self.dtype == "float32" else window
        return Inference(self.dtype, self.batch_size, self.length, extra={"scoring": copied + max(logits, window)})
