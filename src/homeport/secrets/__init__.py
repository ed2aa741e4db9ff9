"""Secrets: named environment variables, encrypted at rest."""
