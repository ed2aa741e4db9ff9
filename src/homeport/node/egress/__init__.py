"""What leaves containers that may reach listed domains only: names, and TLS by its server name."""
