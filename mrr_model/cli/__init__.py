"""The command line, ``mrr``."""
