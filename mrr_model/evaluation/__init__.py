"""Measuring rankings: collections in the BEIR form, metrics, and the frontier of quality against cost."""
