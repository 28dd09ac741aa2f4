"""Tables in Markdown."""

from collections.abc import Iterator, Sequence

from result_files import RenderError


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] | None = None) -> str:
    """A Markdown table; the columns `numbers` (default: all but the first) are aligned to the right."""
    right = range(1, len(heads)) if numbers is None else numbers
    rule = ["---:" if index in right else "---" for index in range(len(heads))]

    def lines() -> Iterator[str]:
        for cells in (heads, rule, *rows):
            if len(cells) != len(heads):
                raise RenderError(f"a row has {len(cells)} cells, not {len(heads)}: {cells}")
            yield f"| {' | '.join(cells)} |"

    return "\n".join(lines())
