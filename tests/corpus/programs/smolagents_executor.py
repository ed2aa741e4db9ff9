"""smolagents' ModalExecutor: a Jupyter kernel in a sandbox, by WebSocket through a tunnel."""

import json

from smolagents.monitoring import AgentLogger, LogLevel
from smolagents.remote_executors import ModalExecutor

executor = ModalExecutor([], AgentLogger(level=LogLevel.ERROR))
try:
    first = executor("x = 6\nprint('printed')")
    second = executor("x * 7")
    executor.send_variables({"given": [1, 2, {"a": "b"}]})
    third = executor("given[2]['a'] + str(x)")
    try:
        executor("1 / 0")
        failed = "nothing"
    except Exception as error:
        failed = str(error)
finally:
    executor.cleanup()
print(json.dumps([first.logs, second.output, third.output, "ZeroDivisionError" in failed]))
