"""The settings of all verbs: every knob with its meaning, its check and its part in a run's identity. No torch."""
