"""Photographs that a user brings: finding them, and the faces in them."""
