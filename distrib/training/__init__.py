"""Model, optimiser, schedule, the loop, checkpoints and tracking."""
