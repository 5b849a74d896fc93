"""Turn a network of somebody else's into its GPN version: activations, weights, constraints."""
