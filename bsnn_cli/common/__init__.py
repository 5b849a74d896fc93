"""What every other folder may use: files, the machine, the terminal, random streams, provenance, text tables."""
