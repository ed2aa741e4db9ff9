"""Search by meaning with a real embedding model in an autoscaled class.

A small language model (WordLlama: static embeddings from a large language model, carried by its
package) reads every docstring of the Python standard library that is installed here, and then
finds the ones closest in meaning to a few questions.

    homeport run examples/semantic_search.py
    homeport run examples/semantic_search.py --query "remove a directory and all that is in it"
"""

import importlib
import inspect
import pkgutil
import sys
import time
import warnings

import modal

app = modal.App("semantic-search")
image = modal.Image.debian_slim(python_version="3.11").pip_install("wordllama==0.4.0.post1")
STARTED = time.monotonic()
CHUNK = 64
QUESTIONS = [
    "delete a folder and everything in it",
    "wait until several threads have got to the same point",
    "how alike are two pieces of text?",
    "the middle value of a list of numbers",
    "turn an object into JSON text",
]


@app.cls(image=image, max_containers=4, scaledown_window=60)
class Embedder:
    """Holds the model; one container serves many calls."""

    @modal.enter()
    def load(self):
        from pathlib import Path

        import wordllama

        # The weights are part of the package: nothing is downloaded at run time.
        folder = Path(wordllama.__file__).parent
        self.model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)

    @modal.method()
    def embed(self, texts: list) -> bytes:
        """One unit vector of 256 float32 per text, in order."""
        return self.model.embed(texts, norm=True).tobytes()

    @modal.method()
    def search(self, question: str, vectors: bytes, top: int = 3) -> list:
        """Indexes and scores of the vectors closest in meaning."""
        import numpy as np

        matrix = np.frombuffer(vectors, dtype=np.float32).reshape(-1, 256)
        scores = matrix @ self.model.embed([question], norm=True)[0]
        best = np.argsort(-scores)[:top]
        return [(int(index), float(scores[index])) for index in best]


def standard_library() -> list:
    """(name, first paragraph of its docstring) of what the standard library offers here."""
    skipped = {"antigravity", "this", "idlelib", "test", "turtledemo", "lib2to3", "tkinter"}
    names = {module.name for module in pkgutil.iter_modules()} & sys.stdlib_module_names - skipped
    public = sorted(name for name in names if not name.startswith("_"))
    found = {}
    for name in [*public, "math", "time", "itertools", "builtins"]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(name)
        except Exception:
            continue  # not for this platform
        for member_name, member in vars(module).items():
            home = getattr(member, "__module__", None)
            if home == name or home not in public:  # else it is re-exported, and told of there
                collect(member, f"{name}.{member_name}", found)
    return sorted((name, text) for text, name in found.items())


def collect(member, name: str, found: dict):
    """Add the docstring of a public function or class, and those of the class's methods."""
    if name.rpartition(".")[2].startswith("_") or not callable(member):
        return
    doc = getattr(member, "__doc__", None)
    text = inspect.cleandoc(doc).split("\n\n")[0] if isinstance(doc, str) else ""
    if len(text) >= 20:
        found.setdefault(text, name)
    if inspect.isclass(member) and name.count(".") == 1:
        for method_name, method in vars(member).items():
            collect(method, f"{name}.{method_name}", found)


@app.local_entrypoint()
def main(query: str = ""):
    times = {"image, upload and app start": time.monotonic() - STARTED}
    entries = standard_library()
    texts = [f"{name}: {text}" for name, text in entries]
    print(f"{len(texts):,} docstrings of the standard library")

    began = time.monotonic()
    Embedder().embed.remote(["warm up"])
    times["container and model start"] = time.monotonic() - began

    began = time.monotonic()
    chunks = [texts[n : n + CHUNK] for n in range(0, len(texts), CHUNK)]
    parts = []
    for done, part in enumerate(Embedder().embed.map(chunks), 1):
        parts.append(part)
        bar = "█" * (30 * done // len(chunks))
        print(f"\rembedding {bar:<30} {done}/{len(chunks)}", end="", flush=True)
    print()
    vectors = b"".join(parts)
    times["embedding"] = time.monotonic() - began

    began = time.monotonic()
    questions = [query] if query else QUESTIONS
    for question, hits in zip(questions, answers(questions, vectors), strict=True):
        print(f"\n» {question}")
        for index, score in hits:
            name, text = entries[index]
            print(f"  {score:.2f}  {name} — {text.splitlines()[0][:80]}")
    times["searches"] = time.monotonic() - began

    print("\nTime")
    for stage, seconds in times.items():
        rate = f"  ({len(texts) / seconds:,.0f} texts/s)" if stage == "embedding" else ""
        print(f"  {stage:<28}{seconds:7.2f} s{rate}")


def answers(questions: list, vectors: bytes):
    """The best hits of each question."""
    inputs = ((question, vectors) for question in questions)
    return Embedder().search.starmap(inputs)
