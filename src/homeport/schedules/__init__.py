"""Functions that run by the clock: cron expressions and periods."""
