"""Datasets as tensors in memory, fetched and verified where they are not here."""
