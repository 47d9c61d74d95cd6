"""Bytes on disk -> Batch on the device."""
