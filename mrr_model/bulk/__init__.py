"""Re-ranking of files: rows in, the same rows with scores out, partition by partition."""
