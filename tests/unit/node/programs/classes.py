"""A class run by the official entrypoint in the node's tests."""

import modal

app = modal.App("classes")


@app.cls()
class Counter:
    @modal.enter()
    def up(self):
        print("entered")
        self.n = 0

    @modal.method()
    def add(self, k):
        self.n += k
        return self.n

    @modal.exit()
    def down(self):
        print("exited")


@app.cls()
class Broken:
    @modal.enter()
    def up(self):
        raise RuntimeError("no luck")

    @modal.method()
    def add(self, k):
        return k
