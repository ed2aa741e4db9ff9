"""Builds images on a node: Dockerfile instructions in, layers out."""

from homeport.node.builder.builder import BuildOutcome, ImageBuilder, Mounts
from homeport.node.builder.errors import BuildError

__all__ = ["BuildError", "BuildOutcome", "ImageBuilder", "Mounts"]
