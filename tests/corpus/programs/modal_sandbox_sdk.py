"""modal-sandbox-sdk's ``Sandbox`` and its files, from its README."""

import json

from sandbox import Images, Sandbox, SandboxReadinessProbe, SandboxVolume

found = {}
volumes = [SandboxVolume.workspace("corpus-workspace")]
with Sandbox.create(image=Images.PY312, volumes=volumes, env={"WHO": "corpus"}) as sb:
    sb.write_text("notes/todo.txt", "ship it\n")
    found["read"] = sb.read_text("notes/todo.txt")
    result = sb.run("python -c 'import os; print(os.environ[\"WHO\"]); raise SystemExit(3)'")
    found["run"] = [result.stdout, result.exit_code]
    found["files"] = sb.list_files("notes")
    found["size"] = sb.stat("notes/todo.txt").size
    sb.sync_workspace()
with Sandbox.create(image=Images.PY312, volumes=volumes) as sb:
    found["kept"] = sb.read_text("notes/todo.txt")
with Sandbox.create(
    image=Images.PY312,
    readiness_probe=SandboxReadinessProbe.exec(["test", "-e", "/tmp/ready"]),
    outbound_domain_allowlist=["example.com"],
) as sb:
    sb.run("touch /tmp/ready")
    sb.wait_until_ready(timeout=60)
    found["command"] = sb.run_command("python", ["-c", "print(6 * 7)"]).stdout
print(json.dumps(found))
