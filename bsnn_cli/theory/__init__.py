"""Predictions for random networks of any activation, and simulations to hold them against."""
