"""What ``cold_start.py`` deploys: functions whose every call needs a new container."""

import modal

app = modal.App("bench-cold-start")
numeric = modal.Image.debian_slim().pip_install("numpy==2.1.3")


@app.function(single_use_containers=True)
def noop():
    return 1


@app.function(single_use_containers=True)
@modal.asgi_app(label="bench-cold-start-web")
def web():
    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    return application


class Model:
    """A small model, as much work to load as reading and checking 100 MB."""

    def load(self):
        import numpy

        self.weights = numpy.random.default_rng(1).standard_normal((5000, 5000), dtype="float32")
        self.norm = float(numpy.linalg.norm(self.weights))

    def first(self):
        return float(self.weights[0].sum())


@app.cls(image=numeric, single_use_containers=True, enable_memory_snapshot=True)
class Snapshotted(Model):
    @modal.enter(snap=True)
    def enter(self):
        self.load()

    @modal.method()
    def predict(self):
        return self.first()


@app.cls(image=numeric, single_use_containers=True)
class Plain(Model):
    @modal.enter()
    def enter(self):
        self.load()

    @modal.method()
    def predict(self):
        return self.first()
