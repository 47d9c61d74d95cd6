"""The network, the weights it starts from, and a trained model: loading, its card, its export."""
