"""Hard negatives: passages that a first stage ranks high and that do not answer the query.

Every function gives, per query, `negatives` different passages, none equal to one of its positives or `excluded`
passages (white space and case aside): drawn at random from the first stage's best `depth`, filled up with random
passages of the corpus where those are too few. The result depends on the arguments and the seed alone. To mix kinds,
mine one after the other, adding what was drawn to the positives of the next.

Where queries are passages of the corpus themselves (duplicate questions, arguments), a query's best match is the query.
:func:`mine` excludes it.

Letters: Q queries, N passages of the corpus, D embedding size.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mrr_model.data.groups import Group, OnBadRow
from mrr_model.data.sources import corpus_of, own_documents, read_source

QUERY_BLOCK = 256
"""Queries whose cosines with the whole corpus are held at once."""


@dataclass(frozen=True)
class MineConfig:
    """What ``mrr mine`` asks for."""

    encoder: str | None = None
    """A bi-encoder for sentence-transformers; None means BM25."""
    negatives: int = 7
    depth: int = 30
    margin: float = 0.95
    scores: bool = False
    """Whether the bi-encoder's cosines become the rows' teacher scores."""
    seed: int = 0
    keep_identical: bool = False
    """Whether a passage that is the query itself may be its negative: the same text, or a BEIR folder's same id."""

    def __post_init__(self) -> None:
        if self.scores and self.encoder is None:
            raise ValueError("scores are a bi-encoder's cosines: name an encoder with them.")
        if not 0 < self.margin <= 1:
            raise ValueError(f"margin must be above 0 and at most 1, got {self.margin}.")


class MinedGroups(Iterator[Group]):
    """Groups with mined negatives, one at a time; ``identical`` counts what was left out on the way."""

    def __init__(self, sources: Iterable[str], settings: MineConfig, on_bad_row: OnBadRow) -> None:
        self.identical = 0
        """Queries so far whose own passage is in the corpus and was no candidate for a negative."""
        self._groups = self._mined(sources, settings, on_bad_row)

    def __next__(self) -> Group:
        return next(self._groups)

    def _mined(self, sources: Iterable[str], settings: MineConfig, on_bad_row: OnBadRow) -> Iterator[Group]:
        for source in sources:
            groups = list(read_source(source, on_bad_row=on_bad_row))
            documents = corpus_of(source, on_bad_row)
            own = own_documents(source, documents, on_bad_row) if documents else {}
            corpus = list(documents.values()) if documents else [text for group in groups for text in _passages(group)]
            keys = set() if settings.keep_identical else {_key(text) for text in corpus}
            for group in mine(groups, corpus, settings, own):
                self.identical += any(_key(text) in keys for text in _excluded(group, own))
                yield group


def mine_sources(sources: Iterable[str], settings: MineConfig, on_bad_row: OnBadRow = "fail") -> MinedGroups:
    """The rows of :func:`~mrr_model.data.sources.read_source` with mined negatives.

    They are drawn from the corpus of a BEIR folder, and from all passages of another source.
    """
    return MinedGroups(sources, settings, on_bad_row)


def mine(
    groups: Sequence[Group],
    corpus: Sequence[str],
    settings: MineConfig,
    own: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[Group]:
    """The groups with negatives from ``corpus``: by BM25, or by a bi-encoder, whose cosines can come with them.

    A passage with the query's text is no negative, nor is what ``own`` (query text -> passages) names, unless
    ``settings.keep_identical``. sentence-transformers' own ``mine_hard_negatives`` leaves out rows for which it finds
    too few and draws from the process's random state; here every row is filled, and the seed decides.
    """
    known = list(dict.fromkeys((*corpus, *(text for group in groups for text in group.positives))))
    queries = [group.query for group in groups]
    positives = [group.positives for group in groups]
    excluded = None if settings.keep_identical else [_excluded(group, own or {}) for group in groups]
    if settings.encoder is None:
        mined = mine_bm25(
            queries,
            positives,
            known,
            negatives=settings.negatives,
            depth=settings.depth,
            seed=settings.seed,
            excluded=excluded,
        )
        for group, negatives in zip(groups, mined, strict=True):
            yield replace(group, negatives=tuple(negatives), positive_scores=None, negative_scores=None)
        return
    encode = _encoder(settings.encoder)
    query_vectors, passage_vectors = encode(queries), encode(known)
    mined = mine_dense(
        query_vectors,
        passage_vectors,
        positives,
        known,
        negatives=settings.negatives,
        depth=settings.depth,
        margin=settings.margin,
        seed=settings.seed,
        excluded=excluded,
    )
    place = {text: row for row, text in enumerate(known)}
    for group, query, negatives in zip(groups, query_vectors, mined, strict=True):
        row = replace(group, negatives=tuple(negatives), positive_scores=None, negative_scores=None)
        if settings.scores:
            passages = passage_vectors[[place[text] for text in _passages(row)]]
            cosines = [round(float(cosine), 4) for cosine in passages @ query]
            split = len(row.positives)
            row = replace(row, positive_scores=tuple(cosines[:split]), negative_scores=tuple(cosines[split:]))
        yield row


def _passages(group: Group) -> tuple[str, ...]:
    return (*group.positives, *group.negatives)


def _excluded(group: Group, own: Mapping[str, Sequence[str]]) -> list[str]:
    """The passages that are the group's query itself, but for its positives."""
    positives = {_key(text) for text in group.positives}
    return [text for text in (group.query, *own.get(group.query, ())) if _key(text) not in positives]


def _encoder(name: str) -> Callable[[Sequence[str]], Tensor]:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            f"mining with a bi-encoder needs sentence-transformers ({error}): "
            'pip install "matryoshka-reranker[sentence-transformers]"'
        ) from error
    try:
        model = SentenceTransformer(name)
    except OSError as error:
        raise FileNotFoundError(f"encoder={name!r} cannot be loaded: {error}") from None

    def encode(texts: Sequence[str]) -> Tensor:
        vectors: Tensor = model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return normalize(vectors.float().cpu(), dim=-1)

    return encode


def mine_bm25(
    queries: Sequence[str],
    positives: Sequence[Sequence[str]],
    corpus: Sequence[str],
    *,
    negatives: int,
    depth: int = 30,
    seed: int = 0,
    excluded: Sequence[Sequence[str]] | None = None,
) -> list[list[str]]:
    """Draw negatives from the BM25 top-`depth`, which excluded passages take no place of.

    Lucene's variant, k1=0.9, b=0.4, English stop words, Snowball's English stemmer. Passages that share no word with
    the query do not count as found.

    queries: Q texts; positives: for each query its positive passages, which need not be in the corpus; corpus: N texts;
    excluded: for each query further passages that are no negatives of it, its own text for example.
    Raises ImportError without bm25s and PyStemmer, ValueError where the arguments do not fit each other or the corpus
    is too small.
    """
    _check(negatives, depth, positives, len(queries), "queries")
    excluded = _checked_excluded(excluded, len(queries))
    places = _places(corpus) if any(excluded) else {}
    left_out = [_places_of(texts, places) for texts in excluded]
    most = max(map(len, left_out), default=0)
    found = [
        [place for place in row if place not in own][:depth]
        for row, own in zip(_bm25_top(queries, corpus, min(depth + most, len(corpus))), left_out, strict=True)
    ]
    return _draw(found, positives, excluded, corpus, negatives, seed)


def mine_dense(
    query_embeddings: Tensor,
    passage_embeddings: Tensor,
    positives: Sequence[Sequence[str]],
    corpus: Sequence[str],
    *,
    negatives: int,
    depth: int = 30,
    margin: float = 0.95,
    seed: int = 0,
    excluded: Sequence[Sequence[str]] | None = None,
) -> list[list[str]]:
    """Draw negatives from a bi-encoder's cosine top-`depth`, leaving out likely unlabelled positives.

    A passage whose cosine exceeds `margin` times the cosine of the query's best positive is skipped, and the depth is
    counted after that (TopK-PercPos in NV-Retriever, arXiv 2407.15831). Where that best cosine is not above 0,
    nothing is skipped.

    query_embeddings: (Q, D) float; passage_embeddings: (N, D) float, row i of corpus[i]; neither need be normalised.
    positives: for each query its positive passages, each one a text of the corpus; corpus: N texts; excluded: for each
    query further passages that are no negatives of it, its own text for example.
    Raises ValueError where the arguments do not fit each other, a positive is not in the corpus, or the corpus is too
    small.
    """
    _check(negatives, depth, positives, len(query_embeddings), "query_embeddings")
    if len(passage_embeddings) != len(corpus):
        raise ValueError(
            f"passage_embeddings has {len(passage_embeddings)} rows for {len(corpus)} texts in corpus;"
            " expected one each"
        )
    if not 0 < margin <= 1:
        raise ValueError(f"margin must lie in (0, 1], got {margin!r}; 1 skips only what is closer than the positive")
    excluded = _checked_excluded(excluded, len(positives))
    places = _places(corpus)
    left_out = [sorted(_places_of(texts, places)) for texts in excluded]
    positive_places = [_positive_places(texts, places, index) for index, texts in enumerate(positives)]
    found: list[list[int]] = []
    passages = normalize(passage_embeddings.float(), dim=-1)
    for start in range(0, len(query_embeddings), QUERY_BLOCK):
        block = normalize(query_embeddings[start : start + QUERY_BLOCK].float(), dim=-1)
        stop = start + len(block)
        for cosines, own, out in zip(
            block @ passages.T, positive_places[start:stop], left_out[start:stop], strict=True
        ):  # cosines: (N,)
            found.append(_dense_top(cosines, own, out, depth, margin))
    return _draw(found, positives, excluded, corpus, negatives, seed)


def mine_random(
    positives: Sequence[Sequence[str]],
    corpus: Sequence[str],
    *,
    negatives: int,
    seed: int = 0,
    excluded: Sequence[Sequence[str]] | None = None,
) -> list[list[str]]:
    """Draw negatives from the whole corpus, whatever the query; ``excluded`` as in :func:`mine_bm25`.

    >>> mine_random([["a"], ["b"]], ["a", "A ", "b"], negatives=1)[0]
    ['b']
    """
    _check(negatives, 0, positives, len(positives), "positives")
    excluded = _checked_excluded(excluded, len(positives))
    return _draw([[] for _ in positives], positives, excluded, corpus, negatives, seed)


def _bm25_top(queries: Sequence[str], corpus: Sequence[str], depth: int) -> list[list[int]]:
    """Per query the places in the corpus of the at most `depth` best passages with a score above 0."""
    try:
        import bm25s
        import Stemmer
    except ImportError as error:
        raise ImportError(
            f'mining with BM25 needs bm25s and PyStemmer ({error}): pip install "matryoshka-reranker[train]"'
        ) from error
    stemmer = Stemmer.Stemmer("english")

    def words(texts: Sequence[str]) -> list[list[str]]:
        tokens: list[list[str]] = bm25s.tokenize(
            list(texts), stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
        )
        return tokens

    corpus_words = words(corpus)
    if depth == 0 or not any(corpus_words):
        return [[] for _ in queries]
    index = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    index.index(corpus_words, show_progress=False)
    known = set(chain.from_iterable(corpus_words))
    asked = [[word for word in query_words if word in known] for query_words in words(queries)]
    found: list[list[int]] = [[] for _ in queries]
    searched = [query for query, query_words in enumerate(asked) if query_words]
    if searched:
        places, scores = index.retrieve([asked[query] for query in searched], k=depth, show_progress=False)
        for query, row, row_scores in zip(searched, places, scores, strict=True):  # each (depth,)
            found[query] = [int(place) for place, score in zip(row, row_scores, strict=True) if score > 0]
    return found


def _dense_top(cosines: Tensor, positives: list[int], excluded: list[int], depth: int, margin: float) -> list[int]:
    """The places of the `depth` passages of highest cosine, (N,), that are not excluded nor above the guard."""
    best = cosines[positives].max()
    skipped = cosines > margin * best if best > 0 else torch.zeros_like(cosines, dtype=torch.bool)
    skipped[positives + excluded] = True
    kept = len(cosines) - int(skipped.sum())
    places: list[int] = cosines.masked_fill(skipped, -torch.inf).topk(min(depth, kept)).indices.tolist()
    return places


def _draw(
    found: Sequence[Sequence[int]],
    positives: Sequence[Sequence[str]],
    excluded: Sequence[Sequence[str]],
    corpus: Sequence[str],
    negatives: int,
    seed: int,
) -> list[list[str]]:
    """Per query, `negatives` passages: at random among those found, then at random from the corpus."""
    keys = [_key(text) for text in corpus]
    rng = random.Random(seed)
    drawn: list[list[str]] = []
    for places, own, others in zip(found, positives, excluded, strict=True):
        refused = {_key(text) for text in (*own, *others)}
        chosen: list[str] = []
        for place in chain(rng.sample(places, len(places)), _random_order(len(corpus), rng)):
            if len(chosen) == negatives:
                break
            if keys[place] not in refused:
                refused.add(keys[place])
                chosen.append(corpus[place])
        if len(chosen) < negatives:
            raise ValueError(
                f"corpus has only {len(chosen)} different passages besides the positives of query {len(drawn)}"
                f"{' and the query itself' if others else ''}, but {negatives} negatives were asked for; ask for fewer "
                "or give a larger corpus"
            )
        drawn.append(chosen)
    return drawn


def _random_order(size: int, rng: random.Random) -> Iterator[int]:
    """0 to size-1 in random order, paying only for what is taken: Fisher-Yates that stores just the moved places."""
    moved: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        place = rng.randrange(last + 1)
        yield moved.get(place, place)
        moved[place] = moved.get(last, last)


def _places(corpus: Sequence[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, text in enumerate(corpus):
        places.setdefault(_key(text), []).append(place)
    return places


def _places_of(texts: Sequence[str], places: Mapping[str, list[int]]) -> set[int]:
    return {place for text in texts for place in places.get(_key(text), ())}


def _positive_places(texts: Sequence[str], places: dict[str, list[int]], query: int) -> list[int]:
    own: list[int] = []
    for text in texts:
        if _key(text) not in places:
            raise ValueError(
                f"positive {text[:60]!r} of query {query} is not in corpus; add it, its cosine sets the guard"
            )
        own.extend(places[_key(text)])
    if not own:
        raise ValueError(f"query {query} has no positive; expected at least one, its cosine sets the guard")
    return own


def _key(text: str) -> str:
    """What two equal passages share."""
    return " ".join(text.split()).casefold()


def _check(negatives: int, depth: int, positives: Sequence[Sequence[str]], queries: int, name: str) -> None:
    if negatives < 0 or depth < 0:
        raise ValueError(f"negatives and depth must not be below 0, got {negatives} and {depth}")
    if len(positives) != queries:
        raise ValueError(
            f"positives has {len(positives)} entries for {queries} {name}; expected a list of passages for each"
        )
    for index, texts in enumerate(positives):
        if isinstance(texts, str):
            raise ValueError(f"positives[{index}] is a string; expected a list of passages, such as [{texts[:40]!r}]")


def _checked_excluded(excluded: Sequence[Sequence[str]] | None, queries: int) -> Sequence[Sequence[str]]:
    if excluded is None:
        return [()] * queries
    if len(excluded) != queries:
        raise ValueError(f"excluded has {len(excluded)} entries for {queries} queries; expected a list for each")
    return excluded
