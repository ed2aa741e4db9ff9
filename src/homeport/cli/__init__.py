"""The ``homeport`` command: starts and stops the platform and hands the rest to the official CLI."""
