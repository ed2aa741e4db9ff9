"""A schedule that cannot be followed is refused when its app is deployed."""

import modal

CASES = {
    "cron": modal.Cron("61 * * * *"),
    "fields": modal.Cron("* * *"),
    "zone": modal.Cron("* * * * *", timezone="Middle/Earth"),
    "period": modal.Period(seconds=0.01),
}


def main():
    from reporting import Report

    check = Report().check
    for name, schedule in CASES.items():
        app = modal.App(f"scheduled-badly-{name}")
        app.function(schedule=schedule, serialized=True)(lambda: None)
        check(name, app.deploy)


if __name__ == "__main__":
    main()
