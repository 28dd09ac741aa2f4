"""From logits to probabilities: maps, their fit, and how reliable they are."""
