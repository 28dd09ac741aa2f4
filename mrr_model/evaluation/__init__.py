"""Evaluate rankings: collections, metrics, the frontier of quality against cost, and calibration."""
