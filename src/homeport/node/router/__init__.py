"""The task command router: programs run in containers, their input and output, their files."""
