"""Breaks long lines at words, under the column where their text begins.

A terminal that is narrower than a line breaks it in mid-word. Elsewhere lines stay whole, so that
what reads them finds them whole. A command in backticks is one word: it can be copied as it stands.
"""

import re

from aieflow.tools.console import OUT

WORD = re.compile(r"(?:`[^`]*`|\S)+")


def fold(text: str, column: int, width: int | None) -> str:
    """The text in lines of at most `width`; the first begins at `column`, and so do the others.

    A word that is longer than a line stands on one of its own; with no width, nothing is changed.

    >>> print("ab: " + fold("run `a b c` now, then go", 4, 16))
    ab: run `a b c`
        now, then go
    """
    if width is None:
        return text
    margin = min(column, width // 2)
    lines, used = [""], column
    for word in WORD.findall(text):
        if lines[-1].strip() and used + 1 + len(word) > width:
            lines.append(" " * margin + word)
            used = margin + len(word)
        else:
            gap = " " if lines[-1] else ""
            lines[-1] += gap + word
            used += len(gap) + len(word)
    return "\n".join(lines)


def terminal_width() -> int | None:
    """Columns of the terminal that results go to; None where it is none."""
    return OUT.width if OUT.is_terminal else None


def print_line(name: str, text: str) -> None:
    """A result's line: its heading, and its text under the others'."""
    OUT.print(f"{name:<11} {fold(text, 12, terminal_width())}", markup=False, emoji=False)
