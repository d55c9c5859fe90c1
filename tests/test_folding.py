"""Lines that are broken at words: no line is too wide, no word is lost, no command is torn."""

import pytest

from aieflow.tools.folding import WORD, fold

TEXT = "firmware and driver differ: run `sudo modprobe -r amdxdna` (or reboot), then `dmesg`, again"


@pytest.mark.parametrize("column", [0, 12, 26])
@pytest.mark.parametrize("width", range(30, 121, 7))
def test_lines_are_filled_and_none_is_too_wide(column: int, width: int) -> None:
    lines = (" " * column + fold(TEXT, column, width)).splitlines()
    assert WORD.findall("\n".join(lines)) == WORD.findall(TEXT)
    assert "`sudo modprobe -r amdxdna`" in "\n".join(lines)
    margin = min(column, width // 2)
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        is_one_word = len(WORD.findall(line)) == 1
        assert len(line) <= width or is_one_word
        # what begins the next line had no room on this one
        assert not after or len(line) + 1 + len(WORD.findall(after)[0]) > width
        assert not after or after.startswith(" " * margin)


def test_without_a_width_nothing_changes() -> None:
    assert fold("two  words\nand a line", 4, None) == "two  words\nand a line"


def test_a_line_that_just_fits_stays() -> None:
    assert fold("ab cd", 3, 8) == "ab cd"
    assert fold("ab cd", 3, 7) == "ab\n   cd"
