"""Integrations, one module per framework: `langchain`, `llama_index`, `sentence_transformers`."""
