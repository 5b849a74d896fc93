"""Signals of every layer, at the start and after training, and what the theorems say of them."""
