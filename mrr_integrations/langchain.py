"""LangChain: a document compressor whose depth and width are chosen per object or per request."""

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from typing_extensions import TypedDict  # pydantic reads typing's own from Python 3.12 on only

from mrr_integrations._options import (
    RerankOptions,
    copied,
    listed,
    missing,
    options_shown,
    progress_shown,
    with_span,
)
from mrr_model.request import CHECKS, CHOSEN, CascadeForm, checked_values, written_cascade

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.runnables import ConfigurableFieldSpec, RunnableConfig, RunnableSerializable
    from langchain_core.runnables.config import (
        ensure_config,
        get_async_callback_manager_for_config,
        get_callback_manager_for_config,
    )
except ImportError as error:
    raise missing("LangChain", "langchain", error) from error

from mrr_model.reranker import Ranking

SCORE_KEY = "relevance_score"
"""The metadata key of a document's score."""

NOT_OURS = {"top_k", "top_p"}
"""Options of chat models and retrievers whose names resemble this step's."""


class RerankInput(TypedDict):
    """The input of a re-ranking step."""

    query: str
    """The query."""
    documents: Sequence[Document]
    """The documents to rank."""


class MatryoshkaReranker(RerankOptions, BaseDocumentCompressor):
    """Re-rank documents for a query at a chosen depth and width, and keep the best.

    Returned documents are copies, best first, with the score as a float in `metadata["relevance_score"]`; equal scores
    keep their order. Dicts and lists in their metadata are copied; other values, such as clients or locks, are shared.
    Threads and event loops may share one object.

    Only a document's `page_content` is scored; `metadata_keys=("title",)` puts its title first.

    With `long_documents="max"`, a document that was split has `metadata["relevant_span"]`: `[start, end]`, the
    characters of its `page_content` in the best window, so that a chain can cut to `page_content[start:end]`. Documents
    that fit have no such key, nor those whose best window lies in the metadata. One that came with the key has the new
    span or none; with `long_documents="truncate"` it keeps its own.

    `ContextualCompressionRetriever` passes no `config` on, so every request uses this object's options. If requests
    should choose theirs, use a chain instead of it:

        {"query": RunnablePassthrough(), "documents": retriever} | reranker.as_runnable()

    Args:
        model: `"mini"` (comes with the package), a local folder, or the id of a hub repository.
        depth: Run at most this many layers; None runs all of them.
        keep_ratio: The share of the passage tokens to keep, in (0, 1], or `{merge layer: ratio}`.
        top_n: Documents to return at most; None returns all.
        min_score: The lowest score to return, on the scale of the returned scores.
        device: `"auto"` or a torch device.
        dtype: `"auto"`, `"float32"`, `"bfloat16"` or `"float16"`.
        max_length: Tokens of an input.
        batch_tokens: Tokens of a batch at most, padding included.
        prompt: The instruction, for models whose input template takes one.
        target: A need instead of `depth`, `keep_ratio` and `cascade`, such as `{"speedup": 3}`.
        cascade: Exits at which unpromising documents stop: a `Cascade`, a dict such as `{"stages": {2: 3.0}}`, or
            `"auto"` for the one in the checkpoint's profile.
        deadline_ms: Milliseconds after which the best ranking known by then is returned.
        long_documents: `"truncate"` cuts documents that are too long; `"max"` splits them into windows.
        window: Tokens of a window, at most; with `"max"` only.
        stride: Tokens after which the next window starts; with `"max"` only.
        normalize: Return probabilities; False returns raw logits.
        show_progress: Show a progress bar or not; None shows one on long work in a terminal.
        reranker: A `mrr_model.MatryoshkaReranker` whose weights are shared.
        metadata_keys: Metadata to score before a document's text.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is unknown or out of its range (pydantic's `ValidationError`).

    Example:
        >>> from langchain_core.documents import Document
        >>> reranker = MatryoshkaReranker(depth=3, keep_ratio=0.5, top_n=1)
        >>> documents = [Document("Bees make honey."), Document("Goethe is the author of Faust.")]
        >>> [best] = reranker.compress_documents(documents, "who wrote Faust?")
        >>> best.page_content
        'Goethe is the author of Faust.'
    """

    metadata_keys: tuple[str, ...] = ()
    """Metadata to score before a document's text, joined by spaces, such as `("title",)`. Documents that lack a key are
    scored without it.
    """

    def compress_documents(
        self, documents: Iterable[Document], query: str, callbacks: Callbacks = None
    ) -> list[Document]:
        """Rank documents for a query.

        Args:
            documents: The documents, in any ordered collection.
            query: The query.
            callbacks: Callbacks of this call.

        Returns:
            Copies of the best `top_n` documents, best first, with their scores in the metadata.

        Raises:
            TypeError: If `documents` is not a list of documents.
            ValueError: If the query is empty.
        """
        return self._compress(documents, query, _config(callbacks), {})

    async def acompress_documents(
        self, documents: Iterable[Document], query: str, callbacks: Callbacks = None
    ) -> list[Document]:
        """Rank documents as `compress_documents` does, in a worker thread."""
        return await self._acompress(documents, query, _config(callbacks), {})

    def as_runnable(self, *, prefix: str = "") -> RunnableSerializable[RerankInput, list[Document]]:
        """A step for LCEL chains, from `{"query": …, "documents": …}` to documents.

        A request may set `depth`, `keep_ratio`, `target`, `cascade`, `deadline_ms`, `long_documents`, `window`,
        `stride`, `top_n`, `min_score`, `prompt` and `normalize`, over the same loaded model:
        `chain.invoke(x, config={"configurable": {"depth": 3}})`. A key that looks like a misspelt one of these gives a
        warning.

        Args:
            prefix: A prefix of these names, for chains with two re-ranking steps. Without it one key sets both steps,
                and LangChain's `config_schema()` refuses steps that share names but not defaults. An unknown key with
                the prefix is an error.

        Example:
            >>> from langchain_core.documents import Document
            >>> from langchain_core.runnables import RunnablePassthrough
            >>> reranker = MatryoshkaReranker(depth=3, top_n=20)
            >>> first = reranker.as_runnable(prefix="first_")
            >>> second = MatryoshkaReranker(reranker=reranker.core, top_n=3).as_runnable(prefix="second_")
            >>> chain = RunnablePassthrough.assign(documents=first) | second
            >>> request = {"query": "who wrote Faust?", "documents": [Document("Goethe wrote Faust.")] * 5}
            >>> len(chain.invoke(request, config={"configurable": {"first_depth": 2, "second_top_n": 2}}))
            2
        """
        return Rerank(compressor=self, prefix=prefix)

    def _compress(
        self, documents: Iterable[Document], query: str, config: RunnableConfig, changes: Mapping[str, Any]
    ) -> list[Document]:
        found, arguments = listed(documents, Document, "documents", "LangChain Document"), self._rank_arguments(changes)
        manager = get_callback_manager_for_config(config)
        run = manager.on_chain_start(None, _traced_input(query, found, arguments), **self._run(config))
        try:
            ranking = self.core.rank(query, self._texts(found), **arguments)
            kept = _copies(found, ranking, arguments)
        except BaseException as error:
            run.on_chain_error(error)
            raise
        run.on_chain_end(_traced_output(ranking, arguments))
        return kept

    async def _acompress(
        self, documents: Iterable[Document], query: str, config: RunnableConfig, changes: Mapping[str, Any]
    ) -> list[Document]:
        found = listed(documents, Document, "documents", "LangChain Document")
        arguments = await self._arank_arguments(changes)
        manager = get_async_callback_manager_for_config(config)
        run = await manager.on_chain_start(None, _traced_input(query, found, arguments), **self._run(config))
        try:
            ranking = await self.core.arank(query, self._texts(found), **arguments)
            kept = _copies(found, ranking, arguments)
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        await run.on_chain_end(_traced_output(ranking, arguments))
        return kept

    def _texts(self, documents: Sequence[Document]) -> list[str]:
        return [self._text(document) for document in documents]

    def _text(self, document: Document) -> str:
        before = [document.metadata.get(key) for key in self.metadata_keys]
        parts = [*(str(value) for value in before if value is not None), document.page_content]
        return " ".join(part for part in parts if part)

    def _run(self, config: RunnableConfig) -> dict[str, Any]:
        """The name and id of this step in a trace."""
        return {"name": config.get("run_name") or type(self).__name__, "run_id": config.get("run_id")}


class Rerank(RunnableSerializable[RerankInput, list[Document]]):
    """A re-ranking step of a chain, made by `MatryoshkaReranker.as_runnable`."""

    compressor: MatryoshkaReranker
    """The loaded model, and the options of requests that give none."""
    prefix: str = ""
    """A prefix of the names that a request's `configurable` may set."""

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """The options that a request's `configurable` may set."""
        fields = MatryoshkaReranker.model_fields
        return [
            ConfigurableFieldSpec(
                id=self.prefix + name,
                annotation=CascadeForm if name == "cascade" else fields[name].annotation,
                description=fields[name].description,
                default=self._default(name),
            )
            for name in CHECKS
        ]

    def _default(self, name: str) -> Any:
        """An option of the compressor as JSON data. A target is none: the others show what it chose."""
        if name == "target":
            return None
        value = getattr(self.compressor, name)
        return written_cascade(value) if name == "cascade" else value

    def invoke(self, input: RerankInput, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:  # noqa: A002  # the base's name
        """Return the best documents, best first.

        Keyword arguments, those of `bind` too, set the same options as `configurable`, without the prefix.
        """
        query, documents = _unpacked(input)
        config = ensure_config(config)
        return self.compressor._compress(documents, query, config, {**self._changes(config), **kwargs})

    async def ainvoke(self, input: RerankInput, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:  # noqa: A002
        """Return the best documents as `invoke` does, from a worker thread."""
        query, documents = _unpacked(input)
        config = ensure_config(config)
        return await self.compressor._acompress(documents, query, config, {**self._changes(config), **kwargs})

    def _changes(self, config: RunnableConfig) -> dict[str, Any]:
        """The options of this step that a request's `configurable` sets, by the arguments' names."""
        given, names = config.get("configurable") or {}, {self.prefix + name: name for name in CHECKS}
        for key in given.keys() - names.keys():
            self._check_unknown(str(key), names)
        changes = checked_values({names[key]: value for key, value in given.items() if key in names})
        if changes.get("target") is not None:  # a form filled in by config_schema sends the defaults along
            defaults = [name for name in CHOSEN if name in changes and changes[name] == getattr(self.compressor, name)]
            changes = {name: value for name, value in changes.items() if name not in defaults}
        return changes

    def _check_unknown(self, key: str, names: Collection[str]) -> None:
        """Warn of a key that looks like a misspelt option of this step; with the step's prefix it is an error.

        Other steps' keys arrive here too. They are ignored if they end in a known name or resemble none of this step's.
        """
        if key in NOT_OURS or key.endswith(tuple(CHECKS)):
            return
        near = get_close_matches(key, names, n=1, cutoff=0.8)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        if self.prefix and key.startswith(self.prefix):
            raise ValueError(f"configurable has the key {key!r}, and this step takes {', '.join(names)}.{hint}")
        if near:
            warnings.warn(
                f"configurable has the key {key!r}, which no re-ranking step takes.{hint}", UserWarning, stacklevel=4
            )


def _config(callbacks: Callbacks) -> RunnableConfig:
    """A config with the callbacks of the call, or with those of the chain around it."""
    return ensure_config({"callbacks": callbacks} if callbacks is not None else None)


def _unpacked(value: RerankInput) -> tuple[str, Sequence[Document]]:
    if not isinstance(value, dict) or not {"query", "documents"} <= value.keys():
        raise ValueError(f'the re-ranking step takes {{"query": str, "documents": [Document, …]}}, got {value!r:.200}.')
    return value["query"], value["documents"]


def _copies(documents: Sequence[Document], ranking: Ranking, arguments: Mapping[str, Any]) -> list[Document]:
    kept = []
    for item in ranking:
        document = documents[item.index]
        metadata = {**copied(document.metadata), SCORE_KEY: item.score}
        metadata = with_span(metadata, item, document.page_content, arguments)
        kept.append(document.model_copy(update={"metadata": metadata}))
    return kept


def _traced_input(query: str, documents: Sequence[Document], arguments: Mapping[str, Any]) -> dict[str, Any]:
    always = {name: arguments[name] for name in ("depth", "keep_ratio", "top_n")}
    given = {name: arguments[name] for name in ("min_score", "prompt") if arguments[name] is not None}
    return {"query": query, "documents": len(documents), **always, **given, **options_shown(arguments)}


def _traced_output(ranking: Ranking, arguments: Mapping[str, Any]) -> dict[str, Any]:
    scores = [item.score for item in ranking]
    return {"documents": len(ranking), "scores": scores, **progress_shown(ranking, arguments)}
