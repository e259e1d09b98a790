"""Medians, spreads and ratios. Knows nothing of what was measured."""
from statistics import median


class Figures:
    """Samples of one thing, one for each round."""

    def __init__(self, values):
        self.values = [float(value) for value in values]
        if not self.values:
            raise ValueError("no samples")

    @property
    def median(self):
        return median(self.values)

    @property
    def least(self):
        return min(self.values)

    @property
    def most(self):
        return max(self.values)


def ratio(value, reference):
    """`value` / `reference`, None if one of them is missing or the reference is nothing."""
    if value is None or not reference:
        return None
    return value / reference


def number(value):
    """A figure as people read it: three digits at least, no more decimals than those need."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def times(value):
    return "-" if value is None else f"{value:.2f} x"
