"""Network file systems: directories that containers share live, and clients reach by RPC."""
