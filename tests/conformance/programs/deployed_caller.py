"""Calls the deployed app from a process that knows only its name."""

import sys

import modal


def main(name):
    from reporting import Report

    check = Report().check
    double = modal.Function.from_name(name, "double")
    Greeter = modal.Cls.from_name(name, "Greeter")  # noqa: N806
    check("function", lambda: double.remote(21))
    check("map", lambda: list(double.map(range(5))))
    check("spawn", lambda: double.spawn(4).get(timeout=30))
    check("generator", lambda: list(modal.Function.from_name(name, "count").remote_gen(3)))
    check("class", lambda: Greeter().greet.remote("you"))
    check("class_parameter", lambda: Greeter(greeting="Moin").greet.remote("you"))
    secret = modal.Secret.from_dict({"OPTION_GIVEN": "yes"})
    check("options", lambda: Greeter.with_options(secrets=[secret])().variable.remote())
    check("edition", modal.Function.from_name(name, "which").remote)
    check("unknown_function", lambda: modal.Function.from_name(name, "nothing").remote())
    check("unknown_class", lambda: modal.Cls.from_name(name, "Nothing")().greet.remote(""))
    check("class_as_function", lambda: modal.Function.from_name(name, "Greeter").remote())


if __name__ == "__main__":
    main(sys.argv[1])
