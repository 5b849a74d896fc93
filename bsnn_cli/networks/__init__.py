"""The networks: the reference to read, the fleet that trains many at once by an engine, and the training loop."""
