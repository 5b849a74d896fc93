"""Run directories and how they come about: one run, a fleet, a sweep, checkpoints, and what can interrupt them."""
