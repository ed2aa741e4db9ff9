"""Functions and classes: definitions, variants, look-ups."""
