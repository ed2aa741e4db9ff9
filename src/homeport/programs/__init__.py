"""Programs and files in containers as older clients ask for them, by the control plane."""
