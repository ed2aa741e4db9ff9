"""Real servers and real clients for the conformance suite."""
