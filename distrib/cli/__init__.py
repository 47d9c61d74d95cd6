"""The programs beside training and evaluation: thin, and none imports another."""
