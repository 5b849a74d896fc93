"""The networks: the readable reference, the fleet that trains many at once, and the loop that both go through."""
