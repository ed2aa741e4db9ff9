"""An app whose functions run by the clock; each run puts its call's id into a queue."""

import os

import modal

NAME = os.environ.get("SCHEDULED_NAME", "conformance-scheduled")
WHEN = os.environ.get("SCHEDULED_CRON", "0 * * * *")
app = modal.App(NAME)
names = modal.Secret.from_dict({"SCHEDULED_NAME": NAME})


@app.function(schedule=modal.Cron(WHEN, timezone="Europe/Berlin"), secrets=[names])
def by_cron():
    runs().put(["cron", modal.current_function_call_id()])


@app.function(schedule=modal.Period(minutes=45), secrets=[names])
def by_period():
    runs().put(["period", modal.current_function_call_id()])


def runs():
    return modal.Queue.from_name(os.environ["SCHEDULED_NAME"], create_if_missing=True)
