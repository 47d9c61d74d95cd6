"""Ranks: how they start, meet, watch each other, agree to stop and end."""
