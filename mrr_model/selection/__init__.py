"""From a need (quality, speed, latency) to a setting. Nothing here knows a reranker."""
