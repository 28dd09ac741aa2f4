"""Where a long text can be broken into windows: at sentences, between words, between tokens.

Shapes: K tokens of a text, N places of one kind.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]

_CLOSING = r"""["'”’»)\]]*"""
SENTENCES = re.compile(
    rf"[.!?…؟۔।॥։።]{_CLOSING}\s+"  # scripts that write a space after a sentence
    r"|[。！？｡．][」』）”’〉》]*\s*"  # those that write none
    r"|\n\s*\n\s*"
)
"""The end of a sentence or paragraph, with the whitespace after it. An abbreviation before a name counts too: a break
there does little harm. Before a lower-case letter, only a paragraph's end counts.
"""
WORDS = re.compile(r"\s+")


@dataclass(frozen=True)
class Breaks:
    """The places of one kind, ascending.

    Attributes:
        ends: Where a window before a place ends, without the whitespace there, (N,).
        starts: Where a window after it starts, (N,).
        ended: Tokens that begin before `ends`, (N,).
        begun: Tokens that end before `starts`, (N,).
    """

    ends: Positions
    starts: Positions
    ended: Positions
    begun: Positions


class BreakableText:
    """A text, its tokens, and where it can be broken. A position is an index of a character.

    Args:
        text: The text, with a character that is not whitespace.
        starts: The first character of each token, (K,), ascending.
        ends: One past the last character of each token, (K,), ascending.
    """

    def __init__(self, text: str, starts: Positions, ends: Positions) -> None:
        self.start = len(text) - len(text.lstrip())
        self.end = len(text.rstrip())
        self._starts, self._ends = np.maximum.accumulate(starts), np.maximum.accumulate(ends)
        spaces = [found.span() for found in WORDS.finditer(text)]
        self._spaces = np.array(spaces, dtype=np.int64).reshape(-1, 2)
        sentences = [
            found.end()
            for found in SENTENCES.finditer(text)
            if not text[found.end() : found.end() + 1].islower() or found[0].count("\n") > 1
        ]
        self._kinds = [self._breaks(np.array(places, dtype=np.int64)) for places in (sentences, self._spaces[:, 1])]
        self._tokens = self._breaks(self._starts)

    def window(self, start: int, tokens: int) -> int:
        """Where a window ends that starts at `start` and has about `tokens` tokens, at most.

        Its end is the last sentence's in its second half; if none ends there, the last word's; if the second half is
        one word, the last token's. It has at least one token.
        """
        first = self._tokens_before(start)
        most = first + max(1, tokens)
        if self._tokens_begun(self.end) <= most:
            return self.end
        for breaks in self._kinds:
            index = int(np.searchsorted(breaks.ended, most, side="right")) - 1
            if index >= 0 and breaks.ends[index] > start and 2 * (breaks.ended[index] - first) >= most - first:
                return int(breaks.ends[index])
        index = int(np.searchsorted(self._tokens.ended, most, side="right")) - 1
        index = max(index, int(np.searchsorted(self._tokens.ends, start, side="right")))
        return int(self._tokens.ends[index]) if index < len(self._tokens.ends) else self.end

    def next_start(self, start: int, end: int, stride: int) -> int:
        """Where the window after that of `start` and `end` starts.

        Args:
            start: Where the window starts.
            end: Where it ends, before the text's end.
            stride: Tokens from its start to that of the next window.

        Returns:
            The nearest sentence's start, the nearest word's if no sentence starts within half of the stride, or the
            nearest token's: after `start`, and no non-space character is between `end` and it.
        """
        latest = self.after(end)
        first = self._tokens_before(start)
        step = min(stride, self._tokens_begun(end) - first)
        for breaks, within in (*((kind, step / 2) for kind in self._kinds), (self._tokens, np.inf)):
            low = int(np.searchsorted(breaks.starts, start, side="right"))
            high = int(np.searchsorted(breaks.starts, latest, side="right"))
            distances = np.abs(breaks.begun[low:high] - (first + step))
            if len(distances) and distances.min() <= within:
                return int(breaks.starts[low + int(distances.argmin())])
        return latest

    def after(self, end: int) -> int:
        """Where the text continues after a window that ends at `end`."""
        return int(self._after_space(np.array([end]))[0])

    def _breaks(self, places: Positions) -> Breaks:
        """The breaks at these positions, without those before the first word and after the last one."""
        starts, ends = self._after_space(places), self._before_space(places)
        inside = (ends > self.start) & (starts < self.end)
        starts, ends = starts[inside], ends[inside]
        first = np.diff(starts, prepend=-1) > 0  # of those in one place
        starts, ends = starts[first], ends[first]
        ended = np.searchsorted(self._starts, ends, side="left")
        return Breaks(ends, starts, ended, np.searchsorted(self._ends, starts, side="right"))

    def _after_space(self, positions: Positions) -> Positions:
        """The same positions, or the first character after the whitespace that they are in."""
        return self._moved(positions, 1)

    def _before_space(self, positions: Positions) -> Positions:
        """The same positions, or the end of the last word before the whitespace that they are in or after."""
        return self._moved(positions, 0)

    def _moved(self, positions: Positions, side: int) -> Positions:
        if not len(self._spaces):
            return positions
        runs = self._spaces[np.maximum(np.searchsorted(self._spaces[:, 0], positions, side="right") - 1, 0)]
        touched = (runs[:, 0] <= positions) & (positions <= runs[:, 1])
        return np.where(touched, runs[:, side], positions)

    def _tokens_before(self, position: int) -> int:
        return int(np.searchsorted(self._ends, position, side="right"))

    def _tokens_begun(self, position: int) -> int:
        return int(np.searchsorted(self._starts, position, side="left"))
