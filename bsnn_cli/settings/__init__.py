"""What can be asked for: every knob with its meaning, its check and its part in the identity of a run. No torch."""
