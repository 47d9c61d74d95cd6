"""Trained models at work: loading, photographs, export."""
