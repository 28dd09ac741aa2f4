"""The model: tensors in, logits out. Nothing here knows texts."""
