"""The protocol edge: from raw messages to handlers and back, in one place for every RPC."""
