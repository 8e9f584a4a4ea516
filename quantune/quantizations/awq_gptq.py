"""AWQ and GPTQ together: scale up the important input channels, then round by GPTQ.

Lin et al., 2023 (arXiv:2306.00978), table 9: at 2 bits the two are better than GPTQ alone.
"""

from typing import Literal

from quantune.quantizations.awq import Scaled
from quantune.quantizations.gptq import SecondOrder


class ScaledSecondOrder(Scaled, SecondOrder):
    """The transform of AWQ, the rounding of GPTQ."""

    method: Literal["awq-gptq"]
    """AWQ's channel scales, then GPTQ's second-order rounding."""

    def solver_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of the larger of the search of scales and GPTQ's rounding."""
        return max(self.scaling_bytes(rows, columns), SecondOrder.solver_bytes(self, rows, columns))
