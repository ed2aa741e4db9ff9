"""Web functions of every kind; the requests are made by the test, which keeps the program running."""

import os
import time

import modal

NEW = hasattr(modal, "fastapi_endpoint")
endpoint = modal.fastapi_endpoint if NEW else modal.web_endpoint

app = modal.App("conformance-web")
image = modal.Image.debian_slim().pip_install("fastapi==0.115.6")


async def plain(scope, receive, send):
    """A bare ASGI application: says what it was asked."""
    if scope["type"] == "lifespan":
        raise RuntimeError("this application has no lifespan")
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body"):
            break
    text = f"{scope['method']} {scope['path']} {scope['query_string'].decode()} {len(body)}"
    headers = [(b"content-type", b"text/plain"), (b"x-one", b"1"), (b"x-one", b"2")]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


@app.function()
@modal.asgi_app()
def bare():
    return plain


@app.function(image=image)
@endpoint()
def hello(name: str = "world"):
    return {"hello": name}


@app.function(image=image)
@endpoint(method="POST")
def add(numbers: dict):
    return {"sum": numbers["a"] + numbers["b"]}


@app.local_entrypoint()
def main():
    import json

    urls = {
        name: getattr(function, "get_web_url", lambda f=function: f.web_url)()
        for name, function in {"bare": bare, "hello": hello, "add": add}.items()
    }
    print("URLS " + json.dumps(urls), flush=True)
    while not os.path.exists(os.environ["CONFORMANCE_REPORT"] + ".done"):
        time.sleep(0.1)
