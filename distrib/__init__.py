"""Distributed training of face-attribute classifiers."""

__version__ = "0.1.0"
