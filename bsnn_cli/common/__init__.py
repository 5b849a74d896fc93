"""Helpers for all other folders: files, the machine, the terminal, random streams, provenance, text tables."""
