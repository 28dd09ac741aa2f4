"""Matryoshka Re-Ranker: a re-ranker whose depth and width are chosen per call (arXiv 2501.16302)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrr_model.cascade import Cascade
    from mrr_model.compression import Compression, Plan
    from mrr_model.modeling.config import MatryoshkaConfig
    from mrr_model.modeling.model import MatryoshkaModel
    from mrr_model.ranking import RankedDocument, Ranking
    from mrr_model.reranker import MatryoshkaReranker
    from mrr_model.selection.target import Target

    __version__: str

__all__ = [
    "Cascade",
    "Compression",
    "MatryoshkaConfig",
    "MatryoshkaModel",
    "MatryoshkaReranker",
    "Plan",
    "RankedDocument",
    "Ranking",
    "Target",
    "__version__",
]

_HOMES = {
    "Cascade": "cascade",
    "Compression": "compression",
    "Plan": "compression",
    "MatryoshkaConfig": "modeling.config",
    "MatryoshkaModel": "modeling.model",
    "MatryoshkaReranker": "reranker",
    "RankedDocument": "ranking",
    "Ranking": "ranking",
    "Target": "selection.target",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that importing the package imports neither torch nor transformers."""
    if name == "__version__":
        from importlib.metadata import version

        return version("matryoshka-reranker")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
