"""Model cards: the default one, and the sections that hold measurements."""

import re

from mrr_model.calibration.maps import Calibration
from mrr_model.checkpoint.config import CheckpointConfig
from mrr_model.selection.profile import Profile

SECTIONS = {Calibration: "calibration", Profile: "profile"}
"""The card's section of each measurement, between `<!-- name -->` and `<!-- /name -->`."""


def default_card(config: CheckpointConfig) -> str:
    """A model card for a checkpoint that has none of its own."""
    backbone, matryoshka = config.backbone, config.matryoshka
    return f"""---
library_name: matryoshka-reranker
pipeline_tag: text-ranking
tags: [matryoshka-reranker, reranker]
---

# Matryoshka re-ranker

A {backbone.model_type} of {backbone.num_hidden_layers} layers that re-ranks at a depth and width chosen per call.
Exits: {", ".join(map(str, matryoshka.exits))}. Merge layers: {", ".join(map(str, matryoshka.merge_layers)) or "none"}.

```python
from mrr_model import MatryoshkaReranker

reranker = MatryoshkaReranker("this folder or repository", depth={matryoshka.exits[0]}, keep_ratio=0.5)
reranker.rank("a question", ["a passage", "another"])
```
"""


def section_pattern(name: str) -> re.Pattern[str]:
    """A pattern that finds a section of a card."""
    return re.compile(f"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)


def with_section(card: str, name: str, text: str) -> str:
    r"""A card with a section, instead of an earlier one of that name, else at the end.

    >>> with_section("# Card", "profile", "A table.")
    '# Card\n\n<!-- profile -->\nA table.\n<!-- /profile -->\n'
    """
    section = f"<!-- {name} -->\n{text.rstrip()}\n<!-- /{name} -->"
    known = section_pattern(name)
    if known.search(card):
        return known.sub(lambda _: section, card, count=1)
    return f"{card.rstrip()}\n\n{section}\n".lstrip()


def without_stale_sections(card: str, calibration: Calibration | None, profile: Profile | None) -> str:
    """A card without the sections of measurements that the checkpoint does not have: they describe other weights."""
    for kind, measurement in ((Calibration, calibration), (Profile, profile)):
        if measurement is None:
            card = section_pattern(SECTIONS[kind]).sub("", card)
    return card
