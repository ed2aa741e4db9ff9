"""Queues: first in, first out, in partitions; getters wait and are woken."""
