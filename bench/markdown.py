"""Lines, paragraphs and numbers of the pages."""

import textwrap


def wrap(text: str) -> str:
    """Break a paragraph into lines of at most 100 characters."""
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def line(cells: list[str]) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


def times(ratio: float) -> str:
    """Return a ratio with one decimal, below 1 with two."""
    return f"{ratio:.2f}" if ratio < 0.95 else f"{ratio:.1f}"


def digits(value: float | None) -> str:
    """Return three significant digits, or nothing."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
