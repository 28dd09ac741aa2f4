"""From a config to the source of its rows."""

from pathlib import Path

from mrr_model.bulk.config import BatchConfig
from mrr_model.bulk.csv_source import CsvSource
from mrr_model.bulk.inputs import InputFile, find_inputs
from mrr_model.bulk.json_source import JsonSource
from mrr_model.bulk.records import Source

QUERY = "query"
"""The default column of the query."""
TEXTS = "texts.sqlite"
"""The file with a collection's texts."""


def open_source(config: BatchConfig, work: Path) -> Source:
    """Open the inputs of a job.

    Args:
        config: Its inputs, columns and collection.
        work: A folder for the collection's texts.

    Raises:
        FileNotFoundError: If an input does not exist.
        ValueError: If an input cannot be read, the inputs are of several kinds, or one lacks the columns.
        ImportError: If a Parquet file is given and pyarrow is missing.
    """
    inputs = find_inputs(config.inputs, runs=config.collection is not None)
    if config.collection is not None:
        from mrr_model.bulk.run_source import RunSource

        return RunSource(inputs.files, config.collection, work / TEXTS)
    columns = (config.query_column or QUERY, config.document_column)
    if inputs.kind == "parquet":
        return _parquet(inputs.files, *columns, config.rank)
    return {"jsonl": JsonSource, "csv": CsvSource}[inputs.kind](inputs.files, *columns, config.rank)


def _parquet(files: tuple[InputFile, ...], query: str, document: str | None, ranked: bool) -> Source:
    try:
        from mrr_model.bulk.parquet_source import ParquetSource
    except ImportError as error:
        raise ImportError(
            f'reading {files[0].name} needs pyarrow ({error}): pip install "matryoshka-reranker[batch]"'
        ) from error
    return ParquetSource(files, query, document, ranked)
