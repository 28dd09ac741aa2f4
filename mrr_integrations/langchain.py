"""LangChain: a document compressor whose depth and width are chosen per object, per chain or per call."""

from collections.abc import Sequence
from typing import Any

from typing_extensions import TypedDict  # pydantic reads typing's own from Python 3.12 on only

from mrr_integrations.options import Depth, Ratio, RerankOptions, TopN, missing

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.runnables import ConfigurableField, RunnableConfig, RunnableSerializable
    from langchain_core.runnables.config import (
        ensure_config,
        get_async_callback_manager_for_config,
        get_callback_manager_for_config,
    )
except ImportError as error:
    raise missing("LangChain", "langchain", error) from error

from mrr_model.reranker import RankedDocument

SCORE_KEY = "relevance_score"


class RerankInput(TypedDict):
    """What the runnable takes."""

    query: str
    documents: Sequence[Document]


class MatryoshkaReranker(RerankOptions, BaseDocumentCompressor):
    """Re-rank documents for a query at a depth and width of choice, and keep the best.

    The documents that come back are copies, best first, with the score as a plain float under
    ``metadata["relevance_score"]``; equal scores keep their order. Safe to share among threads and event loops.

    >>> from langchain_core.documents import Document
    >>> reranker = MatryoshkaReranker(depth=3, keep_ratio=0.5, top_n=1)
    >>> documents = [Document("Bees make honey."), Document("Goethe is the author of Faust.")]
    >>> [best] = reranker.compress_documents(documents, "who wrote Faust?")
    >>> best.page_content
    'Goethe is the author of Faust.'
    """

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks = None
    ) -> list[Document]:
        """The best ``top_n`` documents, best first; an empty list for none."""
        return self._compress(documents, query, _config(callbacks), _setting(self))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks = None
    ) -> list[Document]:
        """:meth:`compress_documents` in a worker thread, so that the event loop goes on."""
        return await self._acompress(documents, query, _config(callbacks), _setting(self))

    def as_runnable(self) -> RunnableSerializable[RerankInput, list[Document]]:
        """A runnable from ``{"query": …, "documents": …}`` to documents, for LCEL chains.

        ``depth``, ``keep_ratio`` and ``top_n`` can be set per call, over the one loaded model:
        ``chain.invoke(x, config={"configurable": {"depth": 3}})``.
        """
        described = {
            "depth": "Run at most this many layers; None runs all.",
            "keep_ratio": "The part of the passage tokens that is left.",
            "top_n": "How many documents to return; None for all.",
        }
        step = Rerank(compressor=self, depth=self.depth, keep_ratio=self.keep_ratio, top_n=self.top_n)
        return step.configurable_fields(
            **{name: ConfigurableField(id=name, description=text) for name, text in described.items()}
        )

    def _compress(
        self, documents: Sequence[Document], query: str, config: RunnableConfig, setting: dict[str, Any]
    ) -> list[Document]:
        documents = _listed(documents)
        manager = get_callback_manager_for_config(config)
        run = manager.on_chain_start(None, _traced_input(query, documents, setting), **self._run(config))
        try:
            ranked = self.core.rank(query, _texts(documents), min_score=self.min_score, prompt=self.prompt, **setting)
            kept = _copies(documents, ranked)
        except BaseException as error:
            run.on_chain_error(error)
            raise
        run.on_chain_end(_traced_output(ranked))
        return kept

    async def _acompress(
        self, documents: Sequence[Document], query: str, config: RunnableConfig, setting: dict[str, Any]
    ) -> list[Document]:
        documents = _listed(documents)
        manager = get_async_callback_manager_for_config(config)
        run = await manager.on_chain_start(None, _traced_input(query, documents, setting), **self._run(config))
        try:
            ranked = await self.core.arank(
                query, _texts(documents), min_score=self.min_score, prompt=self.prompt, **setting
            )
            kept = _copies(documents, ranked)
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        await run.on_chain_end(_traced_output(ranked))
        return kept

    def _run(self, config: RunnableConfig) -> dict[str, Any]:
        """What a trace calls this step."""
        return {"name": config.get("run_name") or type(self).__name__, "run_id": config.get("run_id")}


class Rerank(RunnableSerializable[RerankInput, list[Document]]):
    """A re-ranking step of a chain; see :meth:`MatryoshkaReranker.as_runnable`."""

    compressor: MatryoshkaReranker
    """Holds the loaded model."""
    depth: Depth = None
    """Run at most this many layers; None runs all of them."""
    keep_ratio: Ratio = 1.0
    """The part of the passage tokens that is left."""
    top_n: TopN = 3
    """How many of the best to return; None for all."""

    def invoke(self, input: RerankInput, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:  # noqa: A002  # the base's name
        """The best documents, best first."""
        query, documents = _unpacked(input)
        return self.compressor._compress(documents, query, ensure_config(config), _setting(self))

    async def ainvoke(self, input: RerankInput, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:  # noqa: A002
        """:meth:`invoke`, with the event loop going on."""
        query, documents = _unpacked(input)
        return await self.compressor._acompress(documents, query, ensure_config(config), _setting(self))


def _setting(step: MatryoshkaReranker | Rerank) -> dict[str, Any]:
    """What a call may set, as the compressor or the chain's step has it."""
    return {"depth": step.depth, "keep_ratio": step.keep_ratio, "top_n": step.top_n}


def _config(callbacks: Callbacks) -> RunnableConfig:
    """The callbacks of the call, or those of the chain around it."""
    return ensure_config({"callbacks": callbacks} if callbacks is not None else None)


def _unpacked(value: RerankInput) -> tuple[str, Sequence[Document]]:
    if not isinstance(value, dict) or not {"query", "documents"} <= value.keys():
        raise ValueError(f'the re-ranking step takes {{"query": str, "documents": [Document, …]}}, got {value!r:.200}.')
    return value["query"], value["documents"]


def _listed(documents: Sequence[Document]) -> list[Document]:
    if documents is None or isinstance(documents, Document | str):
        raise TypeError(f"documents must be a list of LangChain Documents, got a single {type(documents).__name__}.")
    return list(documents)


def _texts(documents: Sequence[Document]) -> list[str]:
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise TypeError(f"documents[{index}] must be a LangChain Document, got {type(document).__name__}.")
    return [document.page_content for document in documents]


def _copies(documents: Sequence[Document], ranked: Sequence[RankedDocument]) -> list[Document]:
    kept = []
    for item in ranked:
        document = documents[item.index].model_copy(deep=True)
        document.metadata[SCORE_KEY] = item.score
        kept.append(document)
    return kept


def _traced_input(query: str, documents: Sequence[Document], setting: dict[str, Any]) -> dict[str, Any]:
    return {"query": query, "documents": len(documents), **setting}


def _traced_output(ranked: Sequence[RankedDocument]) -> dict[str, Any]:
    return {"documents": len(ranked), "scores": [item.score for item in ranked]}
