"""From pairs to a sequence, and from a sequence to one picture."""
