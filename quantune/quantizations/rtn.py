"""Round to nearest: each weight becomes the nearest point of a uniform grid fitted to its group. No data is needed.

The baseline of the GPTQ paper (Frantar et al., 2022, arXiv:2210.17323, section 2).
"""

from pathlib import Path
from typing import Any, Literal

from quantune.quantizations.packed import Packed


class RoundToNearest(Packed):
    """Round to nearest, without data."""

    method: Literal["rtn"]
    """Round to nearest."""

    def quantize(self, parent: Path, folder: Path, data: Path | None = None, seed: int = 0) -> dict[str, Any]:
        """Round in float32, one layer at a time; scales and the other layers are stored in the parent's dtype."""
        from quantune.models import loading
        from quantune.models.checkpoints import linear_layers
        from quantune.quantizations.formats import pack_quantized

        layers = linear_layers(parent, self.output_embedding)
        facts = self.chosen(layers, parent, data, seed)
        pack_quantized.save(loading.streamed([parent], "float32"), self.resolved(layers, facts), parent, folder)
        return facts
