"""Label-free self-distillation: give an existing re-ranker smaller sizes, taught by its own full-size scores.

Its weights and its scores at full size stay as they are. Exits below the last layer get copies of its head. The
compensation adapters, which full size never uses, learn to bring each exit, at each width, to the full model's order of
unlabelled passages.
"""

import random
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from mrr_model import checkpoint
from mrr_model.checkpoint import Checkpoint, Given
from mrr_model.checkpoint.defaults import Defaults
from mrr_model.checkpoint.hub import locate
from mrr_model.data.groups import Group
from mrr_model.data.texts import read_texts
from mrr_model.inference.device import DTYPES
from mrr_model.training.config import SelfDistillConfig
from mrr_model.training.dataset import sampled
from mrr_model.training.initialize import with_exits
from mrr_model.training.original import compare_with_original
from mrr_model.training.progress import is_main_process, tell
from mrr_model.training.recipe import Recipe

CHECKED = 4
"""Pairs to compare with the original."""

FILLERS = 1000
"""Documents of earlier rows to remember, to fill up rows with too few."""


def self_distill(config: SelfDistillConfig) -> Path:
    """Give an existing re-ranker smaller sizes and write the checkpoint. No labels are needed.

    A run that was cut short resumes as in `mrr_model.training.recipe.finetune`.

    Args:
        config: Model, texts, output folder and stages.

    Returns:
        The output folder.

    Raises:
        FileExistsError: If the output folder holds a finished checkpoint.
        FileNotFoundError: If the model or the texts do not exist.
        ValueError: If the model is not a re-ranker that can be opened, the folder holds an unfinished run with another
            config, a row cannot be read, or training diverges.
        ImportError: If a package that the config asks for is not installed.
        FolderInUseError: If another process writes to the output folder.

    Example:
        ```python
        folder = self_distill(SelfDistillConfig(model="BAAI/bge-reranker-base", texts=("texts.jsonl",), output="out"))
        reranker = MatryoshkaReranker(folder, depth=6, keep_ratio=0.5)
        ```
    """
    return SelfDistillation(config).run()


class SelfDistillation(Recipe):
    """The run of `self_distill`: the compensation stages over an existing re-ranker.

    Args:
        config: The run's config.
    """

    command = "self-distill"

    def __init__(self, config: SelfDistillConfig) -> None:
        super().__init__(config)
        self.config: SelfDistillConfig = config
        self._announced = False

    def base(self) -> Checkpoint:
        """Open the re-ranker that the config names, and give it exits.

        The first time, say what was opened, and compare it with the original.
        """
        config, folder = self.config, locate(self.config.model)
        given = Given.of(config.template, config.answers)
        loaded = checkpoint.load(folder, dtype=DTYPES[config.dtype], given=given, dropout=0.0)
        start = with_exits(loaded, exits=config.exits, merge_layer=config.merge_layer)
        model = start.model
        if model.matryoshka.exits[-1] != model.num_layers:
            raise ValueError(
                f"exits must end with the model's last layer, {model.num_layers}, whose scores teach the other exits; "
                f"got {model.matryoshka.exits}."
            )
        if not self._announced and is_main_process():
            self._announced = True
            tell(f"opened as {loaded.source}; input template from {loaded.template_source}")
            pairs = [(group.query, text) for group in islice(self.groups(), CHECKED) for text in group.negatives]
            tell(compare_with_original(folder, loaded, pairs[:CHECKED]))
        return Checkpoint(model, start.tokenizer, {}, defaults=loaded.defaults)

    def defaults(self, start: Checkpoint) -> Defaults:
        """Full size scores as before, so what the model's own library does stays, too."""
        return start.defaults

    def groups(self) -> Iterator[Group]:
        """Read the unlabelled rows of all sources; rows with too few documents are filled up."""
        rows = (
            row
            for source in self.config.texts
            for row in sampled(read_texts(source, self.config.on_bad_row), source, self.config)
        )
        return filled(rows, self.config.train_group_size, self.config.seed)


def filled(groups: Iterable[Group], train_group_size: int, seed: int) -> Iterator[Group]:
    """Fill up rows with too few documents by documents of earlier rows.

    The first rows are held back until there are enough documents.

    Args:
        groups: Unlabelled rows.
        train_group_size: Documents that each row should have at least.
        seed: Which documents are added is a function of the rows and the seed.

    Returns:
        The rows, in their order.
    """
    generator = random.Random(seed)
    earlier: deque[str] = deque(maxlen=FILLERS)
    held_back: list[Group] = []
    for group in groups:
        earlier.extend(group.negatives)
        held_back.append(group)
        if len(set(earlier)) >= 2 * train_group_size:
            yield from (_filled(one, train_group_size, list(dict.fromkeys(earlier)), generator) for one in held_back)
            held_back = []
    known = list(dict.fromkeys(earlier))
    yield from (_filled(one, train_group_size, known, generator) for one in held_back)


def _filled(group: Group, train_group_size: int, earlier: list[str], generator: random.Random) -> Group:
    missing = train_group_size - len(group.negatives)
    if missing <= 0:
        return group
    unused = [text for text in earlier if text not in group.negatives]
    extra = generator.sample(unused, min(missing, len(unused)))
    return Group(group.query, (), (*group.negatives, *extra), prompt=group.prompt)
