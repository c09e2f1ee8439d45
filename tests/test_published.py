"""docs/published.md holds what its command prints."""

from pathlib import Path

from rheidae.runs.published import CASES, page, score_published

PAGE = Path(__file__).parents[1] / "docs" / "published.md"


def cells(text):
    """Cells of the tables, without the last column: the model's, which takes a minute of training."""
    return [line.split(" | ")[:-1] for line in text.splitlines() if line.startswith("| ")]


def test_the_page_is_what_the_command_writes():
    scored, data = score_published([0], max_epochs=1)
    made = page(scored, data, "python -m rheidae.runs.published")
    text = PAGE.read_text()
    assert cells(text) == cells(made)
    assert [line.split(" | ")[0] for line in text.splitlines() if line[2:].startswith(tuple(CASES))] == [
        f"| {name}" for name in (*CASES, *CASES)
    ]
    # NSM1: what conversion took from nu_e and nubar_e is the same number, before and after by every scheme.
    before, *after = (one.split(", ") for one in cells(text)[2][1:])
    assert all(abs(float(a) - float(b) - 14.22 + 19.15) < 0.02 for a, b in [before, *after])
