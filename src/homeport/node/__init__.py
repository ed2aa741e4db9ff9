"""The agent of one machine: runs containers and is their server. Imports kernel, link and rpc transport only."""
