"""The settings of all verbs: every option with its meaning, its check and its part in a run's identity. No torch."""
