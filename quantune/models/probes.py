"""Fixed inputs and a model's logits for them, to check that two models are the same."""

from pathlib import Path

import torch

from quantune.core.errors import QuantuneError
from quantune.models.architecture import SPEECH


def probe_tokens(vocabulary: int) -> torch.Tensor:
    """Return two fixed sequences of 64 random token ids, shape (2, 64), int64: the input of the logits checks."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (2, 64), generator=generator)


@torch.no_grad()
def probe_logits(model) -> torch.Tensor:
    """Return the model's float32 logits of the probe tokens, shape (2, 64, vocabulary), on the CPU."""
    tokens = probe_tokens(model.config.vocab_size).to(model.device)
    if model.config.model_type not in SPEECH:
        return model(input_ids=tokens, use_cache=False).logits.float().cpu()
    features = probe_features(model.config).to(model.device, model.dtype)
    return model(input_features=features, decoder_input_ids=tokens, use_cache=False).logits.float().cpu()


def probe_features(config) -> torch.Tensor:
    """Return two fixed random log-mel spectrograms, shape (2, mel bins, frames): the audio for the probe tokens."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, config.num_mel_bins, 2 * config.max_source_positions, generator=generator) * 2 - 1


def relative_distance(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the Frobenius norm of the difference over that of the reference."""
    return float((logits - reference).norm() / reference.norm())


def require_identical_reload(expected: torch.Tensor, folder: Path, dtype: str) -> None:
    """Load the checkpoint from disk, layer by layer, and compare its probe logits with those of the saved model.

    Raises:
        QuantuneError: if they differ in a single bit.
    """
    from quantune.models import loading

    reloaded = probe_logits(loading.streamed([folder], dtype))
    if not torch.equal(reloaded, expected):
        worst = float((reloaded - expected).abs().max())
        raise QuantuneError(f"the saved checkpoint does not reload to the same model: logits differ by up to {worst:g}")
