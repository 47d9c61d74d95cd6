"""What a trained network has learnt: scores, figures, activations, and maps of where it looks."""
