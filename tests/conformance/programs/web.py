"""Web functions of every kind; the requests are made by the test, which keeps the program running."""

import asyncio
import hashlib
import json
import os
import subprocess
import time
from urllib.parse import parse_qs

import modal

NEW = hasattr(modal, "fastapi_endpoint")
endpoint = modal.fastapi_endpoint if NEW else modal.web_endpoint

app = modal.App("conformance-web")
image = modal.Image.debian_slim().pip_install("fastapi==0.115.6")
seen = modal.Dict.from_name("conformance-web-seen", create_if_missing=True)


async def application(scope, receive, send):
    """A bare ASGI application; paths are named for what they do."""
    if scope["type"] == "lifespan":
        raise RuntimeError("this application has no lifespan")
    await {
        "/stream": stream,
        "/endless": endless,
        "/digest": digest,
        "/crash": crash,
        "/half": half,
        "/exit": exits,
        "/slow": slow,
        "/wait": wait,
        "/ws": websocket,
        "/ws/refused": refuse,
        "/afterwards": afterwards,
        "/headers": headers_of,
        "/reply": reply,
        "//elsewhere.example/slow": slow,
    }.get(scope["path"], say)(scope, receive, send)


async def begin(send, status=200, headers=()):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def finish(send, body=b""):
    await send({"type": "http.response.body", "body": body})


def query(scope, name, default="0"):
    return parse_qs(scope["query_string"].decode()).get(name, [default])[0]


async def parts(receive):
    """The body of a request as it comes."""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


async def say(scope, receive, send):
    """Say what was asked."""
    size = sum([len(part) async for part in parts(receive)])
    text = f"{scope['method']} {scope['path']} {scope['query_string'].decode()} {size}"
    where = os.environ["MODAL_TASK_ID"].encode()
    plain = [(b"content-type", b"text/plain"), (b"x-container", where)]
    await begin(send, 201, [*plain, (b"x-one", b"1"), (b"x-one", b"2")])
    await finish(send, text.encode())


async def stream(scope, receive, send):
    """Server-sent events, one every ``pause`` seconds; ``seen`` learns of an end before the last."""
    await begin(send, 200, [(b"content-type", b"text/event-stream")])
    try:
        for number in range(int(query(scope, "n", "3"))):
            event = f"data: {number} {time.time()}\n\n".encode()
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await asyncio.sleep(float(query(scope, "pause", "0.3")))
        await finish(send)
    except BaseException as error:
        await seen.put.aio(query(scope, "key"), type(error).__name__)
        raise


async def headers_of(scope, receive, send):
    """The headers as they came."""
    headers = [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]]
    await begin(send)
    await finish(send, json.dumps(headers).encode())


async def reply(scope, receive, send):
    """What the request's body says: status, headers, and a body in hexadecimal."""
    said = json.loads(b"".join([part async for part in parts(receive)]))
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in said["headers"]]
    await begin(send, said["status"], headers)
    await finish(send, bytes.fromhex(said["body"]))


async def endless(scope, receive, send):
    """As much as anyone takes; ``seen`` learns how much was taken at last."""
    await begin(send, 200, [(b"content-type", b"application/octet-stream")])
    sent = 0
    try:
        for _ in range(int(query(scope, "n", "1000000"))):
            block = b"x" * int(query(scope, "block", "20000"))
            await send({"type": "http.response.body", "body": block, "more_body": True})
            sent += len(block)
            await seen.put.aio(query(scope, "key"), sent)
        await finish(send)
    except BaseException:
        await seen.put.aio(query(scope, "key") + "-ended", sent)
        raise


async def digest(scope, receive, send):
    """Hash the body, resting a while before reading it."""
    await asyncio.sleep(float(query(scope, "rest")))
    size, sha = 0, hashlib.sha256()
    async for part in parts(receive):
        size += len(part)
        sha.update(part)
    await begin(send)
    await finish(send, f"{size} {sha.hexdigest()}".encode())


async def crash(scope, receive, send):
    raise ValueError("this went wrong")


async def half(scope, receive, send):
    await begin(send)
    await send({"type": "http.response.body", "body": b"the first half", "more_body": True})
    await asyncio.sleep(0.3)
    raise ValueError("there is no second half")


async def exits(scope, receive, send):
    """End the container the first ``times`` that ``key`` is asked for."""
    key = query(scope, "key")
    before = await seen.get.aio(key, 0)
    await seen.put.aio(key, before + 1)
    body = b"".join([part async for part in parts(receive)])
    if query(scope, "half") == "1":
        await begin(send)
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await asyncio.sleep(0.5)
    if before < int(query(scope, "times")):
        os._exit(3)
    await begin(send)
    await finish(send, f"{before} ".encode() + body)


async def slow(scope, receive, send):
    await asyncio.sleep(float(query(scope, "s", "1")))
    await begin(send)
    await finish(send, b"at last")


async def wait(scope, receive, send):
    """Wait for the client to leave; ``seen`` learns how that was noticed."""
    key = query(scope, "key")
    await seen.put.aio(key, "began")
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
        await seen.put.aio(key, "told")
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await seen.put.aio(key, await seen.get.aio(key) + " and cancelled")
        raise


async def afterwards(scope, receive, send):
    """Go on after the answer."""
    await begin(send)
    await finish(send, b"done")
    await asyncio.sleep(2)
    await seen.put.aio(query(scope, "key"), "went on")


async def websocket(scope, receive, send):
    """Echo; ``bye`` closes it, ``count`` sends ten messages."""
    assert (await receive())["type"] == "websocket.connect"
    offered = scope["subprotocols"]
    await send({"type": "websocket.accept", "subprotocol": offered[0] if offered else None})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            await seen.put.aio(query(scope, "key"), message["code"])
            return
        text = message.get("text")
        if text == "bye":
            await send({"type": "websocket.close", "code": 3001, "reason": "as asked"})
            return
        if text == "count":
            for number in range(10):
                await send({"type": "websocket.send", "text": str(number)})
        elif text is not None:
            await send({"type": "websocket.send", "text": f"you said {text}"})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"][::-1]})


async def refuse(scope, receive, send):
    await receive()
    await send({"type": "websocket.close", "code": 1000})


@app.function(max_containers=1)
@modal.concurrent(max_inputs=50)
@modal.asgi_app()
def bare():
    return application


@app.function(max_containers=1)
@modal.asgi_app(label="of-my-own-choice")
def one_at_a_time():
    running = 0

    async def one(scope, receive, send):
        nonlocal running
        if scope["type"] == "lifespan":
            raise RuntimeError
        running += 1
        at_once = running
        await asyncio.sleep(0.2)
        running -= 1
        await begin(send)
        await finish(send, str(at_once).encode())

    return one


@app.function()
@modal.wsgi_app()
def wsgi():
    def application(environ, start_response):
        body = environ["wsgi.input"].read()
        start_response("202 Accepted", [("Content-Type", "text/plain")])
        yield f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}".encode()
        yield b" " + body.upper()

    return application


@app.function()
@modal.concurrent(max_inputs=20)
@modal.web_server(8000, startup_timeout=20)
def served():
    os.makedirs("/tmp/site", exist_ok=True)
    with open("/tmp/site/index.html", "w") as file:
        file.write("<p>from a web server")
    subprocess.Popen("python -m http.server 8000 --directory /tmp/site", shell=True)


@app.function(image=image)
@endpoint()
def hello(name: str = "world", wait: float = 0):
    time.sleep(wait)
    return {"hello": name}


# of the one kind of domain that ``modal curl`` brings a token along to
@app.function(image=image)
@endpoint(method="POST", requires_proxy_auth=True, custom_domains=["conformance-web.modal.direct"])
def private(numbers: dict):
    return {"sum": numbers["a"] + numbers["b"]}


@app.cls(image=image)
class Greeter:
    @modal.enter()
    def learn(self):
        self.word = "Good day"

    @endpoint(docs=True)
    def greet(self, name: str):
        return f"{self.word}, {name}"

    @modal.method()
    def plain(self):
        return "plain"


@app.function()
@modal.asgi_app()
def never_starts():
    raise RuntimeError("no application here")


@app.local_entrypoint()
def main():
    def url(function):
        return function.get_web_url() if hasattr(function, "get_web_url") else function.web_url

    urls = {
        "bare": url(bare),
        "one": url(one_at_a_time),
        "wsgi": url(wsgi),
        "served": url(served),
        "hello": url(hello),
        "private": url(private),
        "greet": url(Greeter().greet),
        "never_starts": url(never_starts),
    }
    from reporting import Report

    check = Report().check
    check("remote", lambda: hello.remote())
    check("plain_method", lambda: Greeter().plain.remote())
    print("URLS " + json.dumps(urls), flush=True)
    while not os.path.exists(os.environ["CONFORMANCE_REPORT"] + ".done"):
        time.sleep(0.1)
