"""Greedy decoding, one token a step, in four ways that give the same tokens and differ in speed.

| decoder  | cache   | step                                                                | limited by           |
|----------|---------|---------------------------------------------------------------------|----------------------|
| eager    | grows   | a forward pass, as `generate` does by default                       | launching kernels    |
| static   | fixed   | the same over a cache of fixed size                                 | launching kernels    |
| graph    | fixed   | its kernels captured once as a CUDA graph, then replayed            | the kernels          |
| compiled | fixed   | compiled as a whole by torch.compile, its kernels captured likewise | reading the weights  |

The graph is captured here, not by `mode="reduce-overhead"`: the cache keeps its address, no step copies data in or out,
and token, position and cache length advance on the device, so that the host never waits.

The prompt of a speech model is `Windows`. The keys and values of its cross-attention are computed with it, and kept.
"""

from dataclasses import dataclass

import torch
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel, StaticCache
from transformers.masking_utils import create_masks_for_generate

from quantune.models.adapters import virtual_tokens
from quantune.models.offloading import is_away

ALIGNMENT = 64  # tokens; the capacity of a static cache is a multiple of it, as attention kernels need
AGREEMENT = 0.05  # largest relative distance of logits from the eager decoder's; half precision stays below 0.02
PROBED = 4  # steps after which logits are compared
ORDER = ("compiled", "graph", "static", "eager")  # the fastest first


class UnsupportedError(RuntimeError):
    """The model or the device does not support a decoder."""


@dataclass(frozen=True)
class Windows:
    """The prompt of a speech model: windows of audio, and the tokens that their transcripts begin with."""

    features: torch.Tensor
    """Log-mel spectrograms, shape (batch, mel bins, frames), of the model's dtype."""
    tokens: torch.Tensor
    """Token ids, shape (batch, length), int64."""


Prompt = torch.Tensor | Windows
"""Token ids of shape (batch, length), int64, or `Windows`; on the model's device."""


def tokens_of(prompt: Prompt) -> torch.Tensor:
    """Return the token ids that a prompt ends with, shape (batch, length)."""
    return prompt.tokens if isinstance(prompt, Windows) else prompt


class Eager:
    """One forward pass for each token, over a cache that grows."""

    def __init__(self, model: PreTrainedModel, prompt: Prompt, steps: int):
        """Read the prompt.

        Args:
            model: a causal language model or, for `Windows`, a Whisper model; in evaluation mode.
            prompt: the prompt to continue.
            steps: the most steps that the decoder must support.
        """
        self.model, self.steps, self.taken = model, steps, 0
        self.cache, self.logits, self.encoded = prefill(model, prompt)
        self.first = self.logits.argmax(-1, keepdim=True)
        self.token = self.first.clone()

    def rewind(self) -> None:
        """Go back to the end of the prompt."""
        if self.taken:
            self.cache.crop(-self.taken)
        self.token, self.taken = self.first.clone(), 0

    def step(self) -> None:
        """Set `logits`, shape (batch, vocabulary), and replace `token`, (batch, 1), by the most likely next one."""
        self.logits = forward(self.model, self.cache, self.encoded, input_ids=self.token)
        self.token = self.logits.argmax(-1, keepdim=True)
        self.taken += 1

    launch = step  # a step that launches every kernel; decoders that replay a graph differ here


class Static:
    """One forward pass for each token, over a cache of fixed size: no tensor moves in memory."""

    def __init__(self, model: PreTrainedModel, prompt: Prompt, steps: int):
        """Read the prompt; arguments as for `Eager`.

        Raises:
            UnsupportedError: if a layer's cache holds only a part of the past, as a sliding window's does.
        """
        self.model = model
        filled, logits, self.encoded = prefill(model, prompt)
        self.length = filled.get_seq_length()  # virtual tokens are in the cache, too
        capacity = -(-(self.length + steps) // ALIGNMENT) * ALIGNMENT
        self.cache, self.layers = to_static_cache(model, filled, capacity)
        self.first = logits.argmax(-1, keepdim=True)
        self.token, self.logits = self.first.clone(), logits
        self.position = torch.full_like(self.token, self.length)
        self.like = logits.new_empty(*self.token.shape, 1)
        self.next = next_token

    def rewind(self) -> None:
        """Go back to the end of the prompt; later cache entries are overwritten or masked."""
        for layer in self.layers:
            layer.cumulative_length.fill_(self.length)
        self.position.fill_(self.length)
        self.token.copy_(self.first)

    def launch(self) -> None:
        """Take a step that launches every kernel."""
        token, self.logits = self.next(self.model, self.cache, self.encoded, self.token, self.position, self.like)
        self.token.copy_(token)
        self.position.add_(1)

    def step(self) -> None:
        """Take a step; `token` and `logits` as for `Eager`."""
        self.launch()


class Graph(Static):
    """The step captured once as a CUDA graph, then replayed."""

    def __init__(self, model: PreTrainedModel, prompt: Prompt, steps: int):
        """Read the prompt and capture a step.

        Raises:
            UnsupportedError: without a CUDA device, or as for `Static`.
            RuntimeError: if a layer waits for the host in its forward pass, which cannot be captured.
        """
        if tokens_of(prompt).device.type != "cuda":
            raise UnsupportedError("CUDA graphs need a CUDA device")
        super().__init__(model, prompt, steps)
        self.prepare()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries initialize outside the capture
            for _ in range(3):
                self.rewind()
                self.launch()
        torch.cuda.current_stream().wait_stream(side)
        self.rewind()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.launch()

    def prepare(self) -> None:
        """Prepare the capture; here nothing is done."""

    def step(self) -> None:
        """Replay the step; `token` and `logits` as for `Eager`."""
        self.graph.replay()


class Compiled(Graph):
    """The step compiled as a whole, which fuses small operations into few kernels, and captured."""

    def prepare(self) -> None:
        """Compile for these shapes. Code for other shapes is dropped first, or torch would stop compiling."""
        torch.compiler.reset()
        self.next = torch.compile(next_token, fullgraph=True, dynamic=False)


DECODERS = {"eager": Eager, "static": Static, "graph": Graph, "compiled": Compiled}


def prefill(model: PreTrainedModel, prompt: Prompt) -> tuple[Cache, torch.Tensor, torch.Tensor | None]:
    """Run a model on a prompt; return the cache, the logits of the next token, shape (batch, vocabulary), and for a
    speech model the encoder output, shape (batch, positions, width).
    """
    if isinstance(prompt, Windows):
        output = model(input_features=prompt.features, decoder_input_ids=prompt.tokens, use_cache=True)
        return output.past_key_values, output.logits[:, -1], output.encoder_last_hidden_state
    cache = DynamicCache(config=model.config)
    output = model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return output.past_key_values, output.logits[:, -1], None


def forward(model: PreTrainedModel, cache: Cache, encoded: torch.Tensor | None, **inputs: torch.Tensor) -> torch.Tensor:
    """Return the logits after one more token, shape (batch, vocabulary); the cache grows by that token.

    Args:
        model: as for `Eager`.
        cache: of all tokens before.
        encoded: the encoder output of a speech model; None for a text model.
        inputs: input_ids, shape (batch, 1); optionally attention_mask and position_ids, else the model computes them.
    """
    if encoded is not None:
        inputs = {f"decoder_{name}": value for name, value in inputs.items()} | {"encoder_outputs": (encoded,)}
    model = model.base_model if virtual_tokens(model) else model  # the virtual tokens are in the cache
    return model(past_key_values=cache, use_cache=True, **inputs).logits[:, -1]


def to_static_cache(model: PreTrainedModel, filled: Cache, capacity: int) -> tuple[Cache, list]:
    """Move the content of a growing cache into a cache of fixed size.

    Args:
        model: the model that filled the cache.
        filled: the growing cache; it loses its keys and values, except those of cross-attention, which never grow.
        capacity: of the new cache, in tokens.

    Returns:
        The new cache, and those of its layers that take new tokens.

    Raises:
        UnsupportedError: if a layer holds only a part of the past.
    """
    crossed = isinstance(filled, EncoderDecoderCache)
    growing = filled.self_attention_cache if crossed else filled
    config = model.config.get_text_config(decoder=True)  # Whisper: the decoder's number of layers
    cache = StaticCache(config=config, max_cache_len=capacity)
    if any(cache.is_sliding) or not all(hasattr(layer, "keys") for layer in growing.layers):
        raise UnsupportedError("a layer keeps only a part of the past")
    for layer, source in zip(cache.layers, growing.layers, strict=True):
        layer.update(source.keys, source.values)
        source.keys = source.values = None  # frees it: at most one layer is in memory twice
    return (EncoderDecoderCache(cache, filled.cross_attention_cache) if crossed else cache), cache.layers


def next_token(model, cache: Cache, encoded, token: torch.Tensor, position: torch.Tensor, like: torch.Tensor):
    """Return the most likely next token, (batch, 1), and the logits, (batch, vocabulary); the cache grows by one.

    The mask and the position are given as tensors: a model that computes them from the cache's length would wait for
    the device. `encoded` is as for `forward`; `like`, (batch, 1, any), has the dtype of the mask.
    """
    masks = create_masks_for_generate(model.config, like, None, cache, position_ids=position)
    logits = forward(model, cache, encoded, input_ids=token, attention_mask=masks, position_ids=position)
    return logits.argmax(-1, keepdim=True), logits


@torch.no_grad()
def choose(requested: str, model: PreTrainedModel, prompt: Prompt, steps: int):
    """Return a decoder that has read the prompt, and why faster decoders were rejected.

    Args:
        requested: eager, static, compiled, or auto: compiled if the whole model is on a GPU, else eager. If this
            decoder fails, or its logits differ from those of eager, the next slower one is used.
        model: as for `Eager`.
        prompt: the prompt to continue.
        steps: the most steps that the decoder must support.

    Returns:
        The decoder; its name; name -> reason of each decoder that was rejected.
    """
    tokens = tokens_of(prompt)
    if requested == "auto":
        away = any(map(is_away, model.modules()))
        requested = "compiled" if tokens.device.type == "cuda" and not away else "eager"
    shape, seeded = (min(PROBED, steps), len(tokens), 1), torch.Generator().manual_seed(0)
    forced = torch.randint(model.config.vocab_size, shape, generator=seeded).to(tokens.device)
    expected = None if requested == "eager" else _forced_logits(Eager(model, prompt, steps), forced)
    reasons = {}
    for name in ORDER[ORDER.index(requested) :]:
        try:
            decoder = DECODERS[name](model, prompt, steps)
            if name != "eager":
                _require_agreement(_forced_logits(decoder, forced), expected)
        except Exception as error:  # compilers and kernels raise any error; the eager decoder raises only the model's
            if name == "eager":
                raise
            reasons[name] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:300]
            decoder = None
        else:
            decoder.rewind()
            return decoder, name, reasons


@torch.no_grad()
def decode(decoder, steps: int) -> torch.Tensor:
    """Return the tokens of the next steps, shape (batch, steps), int64; the host does not wait for them."""
    tokens = torch.empty(len(decoder.token), steps, dtype=torch.long, device=decoder.token.device)
    for place in range(steps):
        decoder.step()
        tokens[:, place : place + 1].copy_(decoder.token)
    return tokens


@torch.no_grad()
def launch(decoder) -> None:
    """Take one step that launches every kernel."""
    decoder.rewind()
    decoder.launch()


def _forced_logits(decoder, forced: torch.Tensor) -> torch.Tensor:
    """Return the float32 logits after forced tokens, (steps, batch, 1), which replace the decoder's own tokens."""
    decoder.rewind()
    for token in forced:
        decoder.token.copy_(token)
        decoder.step()
    return decoder.logits.float().clone()


def _require_agreement(logits: torch.Tensor, expected: torch.Tensor) -> None:
    distance = float((logits - expected).norm() / expected.norm())
    if not distance <= AGREEMENT:
        raise UnsupportedError(f"its logits are {distance:.2g} away from the eager decoder's, relatively")
