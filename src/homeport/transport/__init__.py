"""gRPC over HTTP/2 for asyncio, with no knowledge of what is said over it. Imports kernel only."""
