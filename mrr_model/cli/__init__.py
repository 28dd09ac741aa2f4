"""The command line, `mrr`."""
