"""What Dicts, Queues and Volumes have in common: names in environments, heartbeats, listings."""
