"""What is large goes to the server's store of contents and comes back: blobs, volumes, Dicts."""

import hashlib
import io
import os

import modal

app = modal.App("conformance-object-store")
SUFFIX = modal.__version__.replace(".", "-")
MIB = 1 << 20
second = modal.Volume.from_name(f"contents-{SUFFIX}", create_if_missing=True, version=2)
first = modal.Volume.from_name(f"contents-v1-{SUFFIX}", create_if_missing=True, version=1)
VOLUMES = {"v1": first, "v2": second}


def digest(data):
    return hashlib.sha256(data).hexdigest()


def content(name, size):
    """Bytes that no other run has, and no compression makes small."""
    return hashlib.shake_256(f"{name} {SUFFIX}".encode()).digest(size)


@app.function()
def twice(data):
    return [digest(data), data + data]


@app.function(volumes={"/data": second, "/first": first})
def in_container(path, data):
    volume = second if path.startswith("/data") else first
    volume.reload()  # the container may be older than what was uploaded
    with open(path, "rb") as file:
        found = digest(file.read())
    with open(os.path.join(os.path.dirname(path), "written.bin"), "wb") as file:
        file.write(data)
    volume.commit()
    return found


@app.local_entrypoint()
def main():
    from reporting import Report

    report = Report()

    def large_input_and_output():
        data = content("input", 9 * MIB)
        found, back = twice.remote(data)
        return [found == digest(data), back == data + data]

    def mapped():
        datas = [content(f"map {number}", 3 * MIB) for number in range(4)]
        return [
            found == digest(data) for data, (found, _) in zip(datas, twice.map(datas), strict=True)
        ]

    report.check("large", large_input_and_output)
    report.check("mapped", mapped)

    for version, volume in VOLUMES.items():
        folder = {"v1": "/first", "v2": "/data"}[version]
        files = {
            "large.bin": content(f"large {version}", 19 * MIB + 3),
            "small.txt": content(f"small {version}", 500),
            "zeros.bin": bytes(9 * MIB) + b"end" + bytes(MIB),
            "empty": b"",
        }

        def upload(volume=volume, files=files):
            with volume.batch_upload(force=True) as batch:
                for name, data in files.items():
                    batch.put_file(io.BytesIO(data), f"/{name}")
            return sorted((entry.path, entry.size) for entry in volume.listdir("/"))

        def read(volume=volume, files=files):
            return {name: b"".join(volume.read_file(name)) == data for name, data in files.items()}

        def inside(folder=folder, volume=volume, files=files, version=version):
            new = content(f"new {version}", 9 * MIB)
            found = in_container.remote(f"{folder}/large.bin", new)
            return [
                found == digest(files["large.bin"]),
                b"".join(volume.read_file("written.bin")) == new,
            ]

        report.check(f"{version}_upload", upload)
        report.check(f"{version}_read", read)
        report.check(f"{version}_inside", inside)

    def large_values():
        store = modal.Dict.from_name(f"contents-{SUFFIX}", create_if_missing=True)
        value = content("value", 12 * MIB)
        store["large"] = value
        return store["large"] == value

    report.check("dict", large_values)
