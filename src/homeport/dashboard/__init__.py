"""Pages and their read-only queries."""
