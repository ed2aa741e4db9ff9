"""Apps: life cycle, layout, deployments."""
