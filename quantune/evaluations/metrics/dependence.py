"""Standard errors of totals over items in an order, neighbours of which may resemble each other.

Windows of one text resemble their neighbours: on WikiText-2 their losses correlate by 0.66, 0.51 and 0.44 at distances
of 1, 2 and 3. The error comes from equal-weighted cosine transforms of the residuals in the order of the text (Müller,
2004; Lazarus, Lewis, Stock and Watson, Journal of Business & Economic Statistics 36, 2018), with Student's t of as many
degrees of freedom as there are cosines. Few cosines are needed where the correlation reaches far. Its reach comes from
the rule for the block length of a bootstrap (Politis and White, Econometric Reviews 23, 2004; corrected by Patton,
Politis and White, Econometric Reviews 28, 2009). A bootstrap of such blocks is less exact (docs/statistics.md).
"""

import math

import numpy

LEVEL, DIFFERENCE = 30, 10
"""Items for each cosine at least: of losses, which correlate far, and of differences, which correlate less. With fewer
there is no error."""


def standard_error(residuals: numpy.ndarray, spacing: int) -> tuple[float, int]:
    """Return the standard error of the sum of residuals, and its degrees of freedom.

    Args:
        residuals: in order; they sum to zero.
        spacing: items for each cosine at least: `LEVEL` or `DIFFERENCE`.
    """
    cosines = count(residuals, spacing)
    return math.sqrt(len(residuals) * float((transforms(residuals, cosines) ** 2).mean())), cosines


def count(residuals: numpy.ndarray, spacing: int) -> int:
    """Return how many cosines the error is estimated from: 0.4 n^(2/3) as published, fewer where items correlate."""
    items = len(residuals)
    reach = (4 if spacing == LEVEL else 3) * block_length(residuals)
    return max(1, int(min(0.4 * items ** (2 / 3), items / spacing, items / reach)))


def transforms(residuals: numpy.ndarray, cosines: int) -> numpy.ndarray:
    """Return the first cosine transforms along the last axis, each with the variance of a residual."""
    items, places = residuals.shape[-1], numpy.arange(1, cosines + 1)
    mirrored = numpy.concatenate([residuals, residuals[..., ::-1]], axis=-1)  # of which the Fourier transform has them
    waves = numpy.fft.rfft(mirrored)[..., 1 : cosines + 1] * numpy.exp(-0.5j * numpy.pi * places / items)
    return waves.real / 2 * math.sqrt(2 / items)


def block_length(series: numpy.ndarray) -> float:
    """Return the best block length of a circular block bootstrap of the mean (Patton, Politis and White, 2009); 1 where
    neighbours are no more alike than others.
    """
    items = len(series)
    series = series - series.mean()
    variance = float(series @ series) / items
    if items < 5 or variance == 0:
        return 1.0
    run = max(5, math.ceil(math.sqrt(math.log10(items))))
    furthest = min(items - 1, math.ceil(math.sqrt(items)) + run)
    lags = min(items - 1, 2 * furthest)
    products = [float(series[: items - lag] @ series[lag:]) / items for lag in range(1, lags + 1)]
    covariances = numpy.array(products)
    large = numpy.abs(covariances[:furthest]) >= 2 * math.sqrt(math.log10(items) / items) * variance
    reach = _reach(large, run)
    width = min(2 * max(reach, 1), lags)
    lag = numpy.arange(1, lags + 1)
    weights = numpy.clip(2 * (1 - lag / width), 0, 1)
    spectrum = variance + 2 * float((weights * covariances).sum())
    slope = 2 * float((weights * lag * covariances).sum())
    longest = math.ceil(min(3 * math.sqrt(items), items / 3))
    if spectrum <= variance:  # neighbours differ: blocks are not needed
        return 1.0
    best = (2 * slope**2 / (4 / 3 * spectrum**2)) ** (1 / 3) * items ** (1 / 3)
    return min(max(best, 1.0), float(longest))


def _reach(large: numpy.ndarray, run: int) -> int:
    """Return the lag after which so many correlations in a row are small; without such a run the last large one."""
    for lag in range(len(large) - run + 1):
        if not large[lag : lag + run].any():
            return lag
    return int(numpy.nonzero(large)[0][-1]) + 1 if large.any() else 0
