"""What every part speaks: ids, errors, clock, resources. Imports nothing of ours."""
