"""Images: recipes in, built once by a node, looked up by functions."""
