"""Decides what runs where. The decisions are pure; ``loops.py`` carries them out."""
