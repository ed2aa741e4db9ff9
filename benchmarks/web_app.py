"""The application that every side of ``web.py`` serves, and its ways to be served by Homeport."""

import subprocess
import sys

import modal

PACKAGES = ["fastapi==0.115.6", "uvicorn[standard]==0.34.0"]
APPLICATION = """
from fastapi import FastAPI
app = FastAPI()

@app.get("/")
async def root():
    return {"hello": "world"}
"""

app = modal.App("bench-web")
image = modal.Image.debian_slim().pip_install(*PACKAGES)
# On a busy machine a container has what it asks for; three of these and two small ones fit two cores.
warm = {"image": image, "cpu": 0.6, "min_containers": 1, "max_containers": 1}


def application():
    names = {}
    exec(APPLICATION, names)
    return names["app"]


def uvicorn(port):
    with open("/tmp/served.py", "w") as file:
        file.write(APPLICATION)
    command = [sys.executable, "-m", "uvicorn", "served:app", "--app-dir", "/tmp"]
    options = ["--host", "0.0.0.0", "--port", str(port), "--log-level", "warning"]
    subprocess.Popen([*command, *options, "--no-access-log"])


@app.function(**warm)
@modal.concurrent(max_inputs=100)
@modal.asgi_app(label="bench-function")
def function():
    return application()


@app.function(**warm)
@modal.concurrent(max_inputs=100)
@modal.web_server(8000, label="bench-web-server", startup_timeout=60)
def web_server():
    uvicorn(8000)


@app.server(port=8000, unauthenticated=True, **warm)
class BenchServer:
    @modal.enter()
    def start(self):
        uvicorn(8000)


@app.function(image=image, scaledown_window=2, max_containers=1)
@modal.asgi_app(label="bench-cold")
def cold():
    return application()


@app.function(scaledown_window=2, max_containers=1)
@modal.asgi_app(label="bench-cold-bare")
def cold_bare():
    async def bare(scope, receive, send):
        if scope["type"] == "lifespan":
            raise RuntimeError("none")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    return bare
