"""What was called and asked for: kept after the calls themselves are forgotten, and counted."""
