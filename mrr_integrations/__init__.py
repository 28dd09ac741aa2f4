"""Adapters, one file a framework, imported only when asked for: langchain, llama_index, sentence_transformers."""
