"""LangChain: a document compressor whose depth and width are chosen per object, per chain or per call."""

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from typing_extensions import TypedDict  # pydantic reads typing's own from Python 3.12 on only

from mrr_integrations._options import RerankOptions, copied, listed, missing
from mrr_integrations._request import CHECKS

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

from mrr_model.reranker import RankedDocument

SCORE_KEY = "relevance_score"

NOT_OURS = {"top_k", "top_p"}
"""Names like this step's that chat models and retrievers take."""


class RerankInput(TypedDict):
    """What the runnable takes."""

    query: str
    documents: Sequence[Document]


class MatryoshkaReranker(RerankOptions, BaseDocumentCompressor):
    """Re-rank documents for a query at a depth and width of choice, and keep the best.

    The documents that come back are copies, best first, with the score as a plain float under
    ``metadata["relevance_score"]``; equal scores keep their order. Their metadata's dicts and lists are copies; what
    else they hold, a client or a lock, is shared. Safe to share among threads and event loops.

    A document's ``page_content`` is scored, without its metadata (LlamaIndex's way is to score both);
    ``metadata_keys=("title",)`` puts a title before it.

    ``ContextualCompressionRetriever`` calls :meth:`compress_documents` and passes no ``config`` on, so every request
    runs at this object's settings. Where requests choose for themselves, put the retriever and :meth:`as_runnable` in a
    chain, which takes the retriever's place::

        {"query": RunnablePassthrough(), "documents": retriever} | reranker.as_runnable()

    >>> from langchain_core.documents import Document
    >>> reranker = MatryoshkaReranker(depth=3, keep_ratio=0.5, top_n=1)
    >>> documents = [Document("Bees make honey."), Document("Goethe is the author of Faust.")]
    >>> [best] = reranker.compress_documents(documents, "who wrote Faust?")
    >>> best.page_content
    'Goethe is the author of Faust.'
    """

    metadata_keys: tuple[str, ...] = ()
    """Metadata that is scored before a document's text, joined by spaces, ``("title",)`` for example. A document that
    lacks a key is scored without it.
    """

    def compress_documents(
        self, documents: Iterable[Document], query: str, callbacks: Callbacks = None
    ) -> list[Document]:
        """The best ``top_n`` documents, best first; an empty list for none."""
        return self._compress(documents, query, _config(callbacks), {})

    async def acompress_documents(
        self, documents: Iterable[Document], query: str, callbacks: Callbacks = None
    ) -> list[Document]:
        """:meth:`compress_documents` in a worker thread, so that the event loop goes on."""
        return await self._acompress(documents, query, _config(callbacks), {})

    def as_runnable(self, *, prefix: str = "") -> RunnableSerializable[RerankInput, list[Document]]:
        """A runnable from ``{"query": …, "documents": …}`` to documents, for LCEL chains.

        ``depth``, ``keep_ratio``, ``target``, ``top_n``, ``min_score``, ``prompt`` and ``normalize`` can be set per
        call, over the one loaded model: ``chain.invoke(x, config={"configurable": {"depth": 3}})``. A key that looks
        like a misspelt one of these brings a warning.

        ``prefix``: goes before their names, so that two steps of one chain are told apart: without it one key sets
        both, and LangChain's ``config_schema()`` refuses a chain whose steps share names and differ in defaults. A key
        that begins with the prefix and is none of the step's is an error. ``{"first_depth": 2}`` goes to the first step
        of this chain::

            first = MatryoshkaReranker(depth=3, top_n=20).as_runnable(prefix="first_")
            second = MatryoshkaReranker(top_n=3).as_runnable(prefix="second_")
            chain = RunnablePassthrough.assign(documents=first) | second
        """
        return Rerank(compressor=self, prefix=prefix)

    def _compress(
        self, documents: Iterable[Document], query: str, config: RunnableConfig, changes: Mapping[str, Any]
    ) -> list[Document]:
        found, arguments = listed(documents, Document, "documents", "LangChain Document"), self._rank_arguments(changes)
        manager = get_callback_manager_for_config(config)
        run = manager.on_chain_start(None, _traced_input(query, found, arguments), **self._run(config))
        try:
            ranked = self.core.rank(query, self._texts(found), **arguments)
            kept = _copies(found, ranked)
        except BaseException as error:
            run.on_chain_error(error)
            raise
        run.on_chain_end(_traced_output(ranked))
        return kept

    async def _acompress(
        self, documents: Iterable[Document], query: str, config: RunnableConfig, changes: Mapping[str, Any]
    ) -> list[Document]:
        found = listed(documents, Document, "documents", "LangChain Document")
        arguments = await self._awaited_rank_arguments(changes)
        manager = get_async_callback_manager_for_config(config)
        run = await manager.on_chain_start(None, _traced_input(query, found, arguments), **self._run(config))
        try:
            ranked = await self.core.arank(query, self._texts(found), **arguments)
            kept = _copies(found, ranked)
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        await run.on_chain_end(_traced_output(ranked))
        return kept

    def _texts(self, documents: Sequence[Document]) -> list[str]:
        return [self._text(document) for document in documents]

    def _text(self, document: Document) -> str:
        before = [document.metadata.get(key) for key in self.metadata_keys]
        parts = [*(str(value) for value in before if value is not None), document.page_content]
        return " ".join(part for part in parts if part)

    def _run(self, config: RunnableConfig) -> dict[str, Any]:
        """What a trace calls this step."""
        return {"name": config.get("run_name") or type(self).__name__, "run_id": config.get("run_id")}


class Rerank(RunnableSerializable[RerankInput, list[Document]]):
    """A re-ranking step of a chain; see :meth:`MatryoshkaReranker.as_runnable`."""

    compressor: MatryoshkaReranker
    """Holds the loaded model and the settings of a call that names none."""
    prefix: str = ""
    """Goes before the names that a call's ``configurable`` may set."""

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """What a call's ``configurable`` may set."""
        fields = MatryoshkaReranker.model_fields
        return [
            ConfigurableFieldSpec(
                id=self.prefix + name,
                annotation=fields[name].annotation,
                description=fields[name].description,
                default=None if name == "target" else getattr(self.compressor, name),  # what it chose is in the others
            )
            for name in CHECKS
        ]

    def invoke(self, input: RerankInput, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:  # noqa: A002  # the base's name
        """The best documents, best first. Keyword arguments, :meth:`bind`'s too, set what ``configurable`` may set,
        without the prefix.
        """
        query, documents = _unpacked(input)
        config = ensure_config(config)
        return self.compressor._compress(documents, query, config, {**self._changes(config), **kwargs})

    async def ainvoke(self, input: RerankInput, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:  # noqa: A002
        """:meth:`invoke`, with the event loop going on."""
        query, documents = _unpacked(input)
        config = ensure_config(config)
        return await self.compressor._acompress(documents, query, config, {**self._changes(config), **kwargs})

    def _changes(self, config: RunnableConfig) -> dict[str, Any]:
        """What a call's ``configurable`` sets of this step, by the names of the arguments."""
        given, names = config.get("configurable") or {}, {self.prefix + name: name for name in CHECKS}
        for key in given.keys() - names.keys():
            self._suspect(str(key), names)
        changes = {names[key]: value for key, value in given.items() if key in names}
        if changes.get("target") is not None:  # a form filled in by config_schema sends the defaults along
            own = {"depth": self.compressor.depth, "keep_ratio": self.compressor.keep_ratio}
            changes = {name: value for name, value in changes.items() if name not in own or value != own[name]}
        return changes

    def _suspect(self, key: str, names: Collection[str]) -> None:
        """Tell of a key that no step may take. Other steps' keys come here too, and are left alone where they can be
        told: with a known name after another prefix, or unlike all of this step's.
        """
        if key in NOT_OURS or key.endswith(tuple(CHECKS)):
            return
        near = get_close_matches(key, names, n=1, cutoff=0.8)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        if self.prefix and key.startswith(self.prefix):
            raise ValueError(f"configurable has {key!r}; this re-ranking step takes {', '.join(names)}.{hint}")
        if near:
            warnings.warn(f"configurable has {key!r}, which no re-ranking step takes.{hint}", UserWarning, stacklevel=4)


def _config(callbacks: Callbacks) -> RunnableConfig:
    """The callbacks of the call, or those of the chain around it."""
    return ensure_config({"callbacks": callbacks} if callbacks is not None else None)


def _unpacked(value: RerankInput) -> tuple[str, Sequence[Document]]:
    if not isinstance(value, dict) or not {"query", "documents"} <= value.keys():
        raise ValueError(f'the re-ranking step takes {{"query": str, "documents": [Document, …]}}, got {value!r:.200}.')
    return value["query"], value["documents"]


def _copies(documents: Sequence[Document], ranked: Sequence[RankedDocument]) -> list[Document]:
    found = [(documents[item.index], item.score) for item in ranked]
    return [
        document.model_copy(update={"metadata": {**copied(document.metadata), SCORE_KEY: score}})
        for document, score in found
    ]


def _traced_input(query: str, documents: Sequence[Document], arguments: Mapping[str, Any]) -> dict[str, Any]:
    always = {name: arguments[name] for name in ("depth", "keep_ratio", "top_n")}
    asked = {name: arguments[name] for name in ("min_score", "prompt") if arguments[name] is not None}
    return {"query": query, "documents": len(documents), **always, **asked}


def _traced_output(ranked: Sequence[RankedDocument]) -> dict[str, Any]:
    return {"documents": len(ranked), "scores": [item.score for item in ranked]}
