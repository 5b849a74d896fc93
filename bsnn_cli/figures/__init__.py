"""Stored results as figures; nothing is measured here."""
