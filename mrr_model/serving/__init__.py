"""One HTTP server for the clients of several re-ranking APIs: `mrr serve`. Needs the extra `serve`."""
