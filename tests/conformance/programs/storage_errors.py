"""What the server says to requests for storage that cannot be, sent as the client sends its own."""

import asyncio
import hashlib
import sys
import uuid

import aiohttp
import modal
from modal._utils.async_utils import synchronizer
from modal.client import _Client
from modal_proto import api_pb2 as api
from reporting import Report

RUN = uuid.uuid4().hex[:8]
BLOCK = 8 * 1024 * 1024
check = Report().check


async def _call(method, request):
    return await getattr((await _Client.from_env()).stub, method)(request)


call = synchronizer.create_blocking(_call)


def refused(name, method, /, **fields):
    """``method`` of the protocol with these fields is asked for."""
    request = getattr(api, f"{method}Request")
    check(name, lambda: str(call(method, request(**fields))))


def http(method, url, data=None):
    """Status of an HTTP request."""

    async def ask():
        session = aiohttp.ClientSession()
        async with session, session.request(method, url, data=data) as answer:
            return answer.status

    return asyncio.run(ask())


volume = modal.Volume.from_name(f"errors-{RUN}", create_if_missing=True, version=2).hydrate()
shared = modal.Dict.from_name(f"errors-{RUN}", create_if_missing=True)
line = modal.Queue.from_name(f"errors-{RUN}", create_if_missing=True)
shared.len(), line.len()
vo, di, qu = volume.object_id, shared.object_id, line.object_id


# ── Dicts ─────────────────────────────────────────────────────────────────────────────────────

two = [api.DictEntry(key=b"a", value=b"1"), api.DictEntry(key=b"b", value=b"2")]
refused("dict_several_if_missing", "DictUpdate", dict_id=di, updates=two, if_not_exists=True)
refused("dict_heartbeat_missing", "DictHeartbeat", dict_id="di-" + "0" * 22)
refused("dict_of_another_kind", "DictLen", dict_id=qu)
refused("dict_malformed_id", "DictLen", dict_id="../x")
refused("dict_long_name", "DictGetOrCreate", deployment_name="x" * 65, object_creation_type=1)
refused("dict_list_nowhere", "DictList", environment_name="nowhere")
check("dict_untouched", shared.len)


# ── Queues ────────────────────────────────────────────────────────────────────────────────────

refused("queue_bad_entry", "QueueNextItems", queue_id=qu, last_entry_id="x")
long = b"x" * 65
refused("queue_get_long_key", "QueueGet", queue_id=qu, partition_key=long, n_values=1)
refused("queue_len_long_key", "QueueLen", queue_id=qu, partition_key=long)
refused("queue_clear_long_key", "QueueClear", queue_id=qu, partition_key=long)
refused("queue_next_long_key", "QueueNextItems", queue_id=qu, partition_key=long)
refused("queue_past_ttl", "QueuePut", queue_id=qu, values=[b"x"], partition_ttl_seconds=-1)
refused("queue_heartbeat_missing", "QueueHeartbeat", queue_id="qu-" + "0" * 22)
refused("queue_of_another_kind", "QueueLen", queue_id=di)
refused("queue_long_name", "QueueGetOrCreate", deployment_name="x" * 65, object_creation_type=1)
refused("queue_list_nowhere", "QueueList", environment_name="nowhere")
check("queue_untouched", lambda: line.len(total=True))


# ── Volumes and their contents ────────────────────────────────────────────────────────────────

File = api.VolumePutFiles2Request.File
Part = api.VolumePutFiles2Request.Block


def put(name, path, size, hashes):
    blocks = [Part(contents_sha256=sha256) for sha256 in hashes]
    files = [File(path=path, size=size, blocks=blocks)]
    refused(name, "VolumePutFiles2", volume_id=vo, files=files)


CONTENT = f"one of {RUN}".encode()
one = hashlib.sha256(CONTENT).digest()
put("volume_short_hash", "x", 3, [b"short"])
put("volume_too_few_blocks", "x", BLOCK + 1, [one])
put("volume_too_many_blocks", "x", 3, [one, one])
put("volume_no_path", "/", 3, [one])
put("volume_leading_out", "../x", 3, [one])
mount = [api.MountFile(filename="x", sha256_hex=hashlib.sha256(b"never sent").hexdigest())]
refused("volume_content_not_sent", "VolumePutFiles", volume_id=vo, files=mount)
refused("mount_wrong_hash", "MountPutFile", sha256_hex=one.hex(), data=b"two")
refused("mount_no_hash", "MountPutFile", sha256_hex="x", data=b"two")
refused("volume_heartbeat_missing", "VolumeHeartbeat", volume_id="vo-" + "0" * 22)
refused("volume_of_another_kind", "VolumeHeartbeat", volume_id=di)
refused("volume_long_name", "VolumeRename", volume_id=vo, name="x" * 65)
refused("volume_empty_name", "VolumeRename", volume_id=vo, name="")
refused("volume_list_nowhere", "VolumeList", environment_name="nowhere")
refused("volume_copy_nothing", "VolumeCopyFiles2", volume_id=vo, src_paths=[], dst_path="x")
refused("blob_missing", "BlobGet", blob_id="bl-" + "0" * 22)
check("volume_untouched", lambda: [entry.path for entry in volume.listdir("/", recursive=True)])


def block_requests():
    """A block's URL allows what it was made for, and no more."""
    blocks = [Part(contents_sha256=one)]
    request = api.VolumePutFiles2Request(
        volume_id=vo, files=[File(path="one", size=len(CONTENT), blocks=blocks)]
    )
    url = call("VolumePutFiles2", request).missing_blocks[0].put_url
    found = {
        "another content": http("PUT", url, b"two"),
        "too long": http("PUT", url, bytes(BLOCK + 1)),
        "read": http("GET", url),
        "forged": http("PUT", url[:-4] + "AAAA", CONTENT),
        "unsigned": http("PUT", url.partition("?")[0], CONTENT),
        "right": http("PUT", url, CONTENT),
    }
    call("VolumePutFiles2", request)
    return [found, b"".join(volume.read_file("one")) == CONTENT]


check("block_requests", block_requests)


# ── Secrets, network file systems, environments ───────────────────────────────────────────────

st, sv = "st-" + "0" * 22, "sv-" + "0" * 22
if hasattr(api, "SecretUpdateRequest"):
    refused("secret_update_missing", "SecretUpdate", secret_id=st)
if hasattr(api, "SecretGetInfoRequest"):
    refused("secret_info_missing", "SecretGetInfo", secret_id=st)
refused("secret_delete_missing", "SecretDelete", secret_id=st)
refused("secret_list_nowhere", "SecretList", environment_name="nowhere")
refused("secret_long_name", "SecretGetOrCreate", deployment_name="x" * 65, object_creation_type=1)
refused("nfs_heartbeat_missing", "SharedVolumeHeartbeat", shared_volume_id=sv)
refused("nfs_get_missing", "SharedVolumeGetFile", shared_volume_id=sv, path="x")
refused("nfs_list_nowhere", "SharedVolumeList", environment_name="nowhere")
refused(
    "nfs_long_name", "SharedVolumeGetOrCreate", deployment_name="x" * 65, object_creation_type=1
)
for name, value in {"empty": "", "long": "x" * 65, "like_id": "en-x", "dash": "-x"}.items():
    refused(f"environment_{name}", "EnvironmentCreate", name=value)
refused("environment_delete_missing", "EnvironmentDelete", name="nowhere")
refused("environment_update_missing", "EnvironmentUpdate", current_name="nowhere")
default = call("EnvironmentGetOrCreate", api.EnvironmentGetOrCreateRequest()).metadata.name
refused("environment_delete_default", "EnvironmentDelete", name=default)
refused("environment_again", "EnvironmentCreate", name=default)
sys.exit(0)
