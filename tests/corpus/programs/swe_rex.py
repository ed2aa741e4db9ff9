"""swe-rex's runtime: its server in a sandbox, a shell session in that, by a tunnel."""

import asyncio
import json

import modal
from swerex.deployment.modal import ModalDeployment
from swerex.runtime.abstract import (
    BashAction,
    Command,
    CreateBashSessionRequest,
    ReadFileRequest,
    WriteFileRequest,
)


async def main():
    deployment = ModalDeployment(
        image=modal.Image.debian_slim().pip_install("swe-rex==1.4.0"),
        install_pipx=False,
        startup_timeout=120,
        deployment_timeout=600,
    )
    await deployment.start()
    runtime = deployment.runtime
    await runtime.create_session(CreateBashSessionRequest())
    await runtime.run_in_session(BashAction(command="cd /tmp && export WHO=corpus"))
    said = await runtime.run_in_session(BashAction(command="echo $WHO in $PWD"))
    await runtime.write_file(WriteFileRequest(path="/tmp/a.txt", content="kept"))
    content = (await runtime.read_file(ReadFileRequest(path="/tmp/a.txt"))).content
    once = await runtime.execute(Command(command=["sh", "-c", "echo once; exit 4"]))
    sandbox = deployment.sandbox
    await deployment.stop()
    await sandbox.terminate.aio()
    print(json.dumps([said.output, said.exit_code, content, once.stdout, once.exit_code]))


asyncio.run(main())
