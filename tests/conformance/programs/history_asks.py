"""Runs commands of the client's CLI, one for each line that comes: the import is paid for once."""

import contextlib
import io
import json
import sys

from modal.__main__ import main


def run(arguments):
    output, errors = io.StringIO(), io.StringIO()
    sys.argv = ["modal", *arguments]
    code = 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    return {"returncode": code, "stdout": output.getvalue(), "stderr": errors.getvalue()}


for line in sys.stdin:
    print(json.dumps(run(json.loads(line))), flush=True)
