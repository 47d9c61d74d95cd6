"""Studies: many trainings that differ in a few settings, and what comes out of them."""
