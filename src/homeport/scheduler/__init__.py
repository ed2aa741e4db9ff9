"""Decides what runs where. The decisions are pure; the rest carries them out (``service.py``)."""
