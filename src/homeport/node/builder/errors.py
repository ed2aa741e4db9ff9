"""Why an image could not be built, in a sentence for the person at the client."""

from __future__ import annotations


class BuildError(Exception):
    """The build failed; ``message`` names the instruction, what is so and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class StepError(BuildError):
    """A ``BuildError`` that names the instruction already."""
