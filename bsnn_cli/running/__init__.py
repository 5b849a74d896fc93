"""From a command line to finished runs: one run, a fleet, a sweep, and what can interrupt them."""
