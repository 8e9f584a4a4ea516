"""Student's t and the binomial distribution, from the incomplete beta function: all that intervals need of them."""

import math
from functools import cache


def beta(x: float, a: float, b: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b), by its continued fraction (Lentz's method; Press et
    al., Numerical Recipes, 2007, section 6.4).
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta(1 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    upper, lower, value = 1.0, 0.0, 1.0
    for step in range(100_000):
        m = step // 2
        if step == 0:
            term = 1.0
        elif step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        lower = 1 / _away(1 + term * lower)
        upper = _away(1 + term / upper)
        value *= upper * lower
        if abs(upper * lower - 1) < 1e-14:
            break
    return math.exp(front) * (value - 1) / a


def _away(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300


def student_below(t: float, degrees: float) -> float:
    """Return the probability that Student's t lies below a value."""
    if not math.isfinite(t):
        return math.nan if math.isnan(t) else float(t > 0)
    tail = beta(degrees / (degrees + t * t), degrees / 2, 0.5) / 2
    return 1 - tail if t > 0 else tail


@cache
def student(probability: float, degrees: float) -> float:
    """Return the quantile of Student's t at a probability."""
    if probability < 0.5:
        return -student(1 - probability, degrees)
    return _root(lambda t: student_below(t, degrees) - probability, 0.0, 1e6)


def binomial_at_most(count: int, trials: int, share: float) -> float:
    """Return the probability of at most `count` successes."""
    return 1.0 if count >= trials else beta(1 - share, trials - count, count + 1)


@cache
def largest_share(count: int, trials: int, probability: float = 0.025) -> float:
    """Return the share above which so few successes are less likely than `probability` (Clopper and Pearson, 1934)."""
    if count >= trials:
        return 1.0
    return _root(lambda share: probability - binomial_at_most(count, trials, share), 0.0, 1.0)


def smallest_share(count: int, trials: int, probability: float = 0.025) -> float:
    """Return the share below which so many successes are less likely than `probability`."""
    return 1 - largest_share(trials - count, trials, probability)


def _root(rising, low: float, high: float) -> float:
    """Return where a rising function crosses zero, by bisection."""
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2
