"""Hostile requests from inside a container, through the socket it was given.

``modal run container_fuzz.py --seed 1 --requests 2000``: code that has a container does what it can
to the node and to the work of others, whose calls have to come out right all the same.
"""

import os
import random
from collections import Counter
from pathlib import Path

import modal

HERE = Path(__file__).parent
app = modal.App("container-fuzz")
image = modal.Image.debian_slim()
if modal.is_local():
    image = image.add_local_file(HERE / "hostile.py", "/root/hostile.py")
OWN = (
    "ContainerHello",
    "ContainerHeartbeat",
    "ContainerCheckpoint",
    "ContainerServerLifecycleReady",
    "FunctionPutOutputs",
    "FunctionGetDynamicConcurrency",
    "FunctionCallPutDataOut",
    "FunctionCallGetDataIn",
    "FunctionCallGetDataOut",
    "VolumeCommit",
    "VolumeReload",
    "BlobCreate",
    "FunctionMap",
    "FunctionPutInputs",
    "FunctionGetOutputs",
    "FunctionFinishInputs",
    "FunctionCallCancel",
    "ContainerStop",
    "TaskResult",
)
"""What a node answers its containers, and what they can do to calls; the last two end them."""
OF_THE_OWNER = ("App", "Environment", "Function", "Task", "Workspace")
"""A container may stop its app, say: these are left out but for those above."""
WAITING = {"ContainerHeartbeat", "FunctionGetOutputs", "FunctionCallGetDataOut"}


class RawCodec:
    __content_subtype__ = "proto"

    def encode(self, message, message_type):
        return message

    def decode(self, data, message_type):
        return data


def methods():
    from google.protobuf.message_factory import GetMessageClass
    from modal_proto import api_pb2

    class Method:
        def __init__(self, descriptor):
            self.name = descriptor.name
            self.path = f"/modal.client.ModalClient/{descriptor.name}"
            self.request = GetMessageClass(descriptor.input_type)
            self.is_stream = descriptor.server_streaming

    service = api_pb2.DESCRIPTOR.services_by_name["ModalClient"]
    return {item.name: Method(item) for item in service.methods}


async def send(channel, method, body, metadata):
    from grpclib.const import Cardinality
    from grpclib.exceptions import GRPCError, StreamTerminatedError

    kind = Cardinality.UNARY_STREAM if method.is_stream else Cardinality.UNARY_UNARY
    seconds = 0.3 if method.name in WAITING else 30
    try:
        async with channel.request(
            method.path, kind, bytes, bytes, timeout=seconds, metadata=metadata
        ) as stream:
            await stream.send_message(body, end=True)
            await stream.recv_message()
    except GRPCError as error:
        return error.status.value, error.message
    except TimeoutError:
        return 4, ""
    except (OSError, StreamTerminatedError) as error:
        return -1, str(error)
    return 0, ""


@app.function(image=image, retries=0, timeout=240)
async def attack(seed, first, last, ids, report):
    from grpclib.client import Channel
    from hostile import Hostile, Pool

    known = methods()
    pool = Pool({})
    # its own call is not among them: it may cancel it, and would be gone
    pool.take(" ".join([*ids, modal.current_input_id() or ""]))
    _, _, path = os.environ["MODAL_SERVER_URL"].removeprefix("unix://").partition("/")
    channel = Channel(path=f"/{path}", codec=RawCodec())
    statuses, defects = Counter(), []
    for number in range(first, last):
        choice = random.Random(f"{seed} {number}")
        is_last = number > last - 3
        name = choice.choice(OWN[-2:] if is_last else OWN[:-2])
        if choice.random() < 0.2 and not is_last:
            name = choice.choice([name for name in known if not name.startswith(OF_THE_OWNER)])
        hostile = Hostile(f"{seed} {number} request", pool, poll_s=0.2)
        metadata = hostile.metadata({"x-modal-client-version": modal.__version__})
        status, message = await send(channel, known[name], hostile.request(known[name]), metadata)
        statuses[status] += 1
        if status in (-1, 2, 13) or (status == 4 and name in OWN and name not in WAITING):
            defects.append(f"{name} gave {status} {message} (seed {seed!r} number {number})")
        if number % 100 == 99 or number == last - 4:
            await report.put.aio("statuses", dict(statuses))
            await report.put.aio("defects", defects)
    return "survived"


@app.function(image=image, max_containers=1)
def honest(x):
    import time

    time.sleep(0.05)
    return x * x


@app.local_entrypoint()
def main(seed: str = "1", requests: int = 2000):
    with modal.Dict.ephemeral() as report:
        map_ = honest.spawn(11)
        ids = [map_.object_id, honest.object_id, attack.object_id, app.app_id]
        attacking = attack.spawn(seed, 0, requests, ids, report)
        assert list(honest.map(range(100))) == [x * x for x in range(100)]
        try:
            attacking.get(timeout=200)
        except Exception as error:
            print("the attacker:", type(error).__name__)
        print("statuses", report["statuses"])
        assert not report["defects"], report["defects"]
        assert list(honest.map(range(20))) == [x * x for x in range(20)]
    print("others' work came out right")
