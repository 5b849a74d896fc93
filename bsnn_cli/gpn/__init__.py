"""Activations: Gaussian moments, the coefficients of GPN, the named table and functions of the user's own."""
