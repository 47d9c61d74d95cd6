"""Exact scores from any number of ranks."""
