"""Texts in, logits out: tokenizing, batching and running a model."""
