"""Images of a registry that wants to know who asks, and builds that would never end."""

import os
import sys
from pathlib import Path

import modal

HERE = Path(__file__).parent
ADDRESS = os.environ["REGISTRY"]
ACCOUNT = '{"client_email": "a@b", "private_key": "-----BEGIN\\nx\\"y: z\\n"}'
APP = "conformance-images-registry"

FILL = """
free() { df -m / | tail -n 1 | { read -r a b c d e; echo "$d"; }; }
n=0
while [ "$(free)" -gt 14 ]; do n=$((n+1)); dd if=/dev/zero of=/fill$n bs=1M count=2 2>/dev/null; done
echo nearly full
while :; do n=$((n+1)); dd if=/dev/zero of=/fill$n bs=256k count=1 2>/dev/null; sleep 0.5; done
"""
FORK = "f() { while :; do sleep 1000 & done; }; f"


def inside(image, *command):
    """What ``command`` prints in a sandbox of ``image``."""
    app = modal.App.lookup(APP, create_if_missing=True)
    sandbox = modal.Sandbox.create(*command, image=image, app=app)
    sandbox.wait()
    return sandbox.stdout.read().strip()


def secret(**values):
    return modal.Secret.from_dict(values)


def static(password="hush"):
    who = secret(REGISTRY_USERNAME="me", REGISTRY_PASSWORD=password)
    image = modal.Image.from_registry(f"{ADDRESS}/static/img:v1", secret=who)
    return inside(image.env({"SAID": "yes"}), "sh", "-c", "cat /told; echo $SAID")


def ecr(key_id="AKIDEXAMPLE"):
    who = secret(AWS_ACCESS_KEY_ID=key_id, AWS_SECRET_ACCESS_KEY="x", AWS_REGION="eu-west-1")
    return inside(modal.Image.from_aws_ecr(f"{ADDRESS}/ecr/img:v1", secret=who), "cat", "/told")


def ecr_role():
    who = secret(AWS_ROLE_ARN="arn:aws:iam::1:role/x", AWS_REGION="eu-west-1")
    return inside(modal.Image.from_aws_ecr(f"{ADDRESS}/role/img:v1", secret=who), "cat", "/told")


def gcp():
    who = secret(SERVICE_ACCOUNT_JSON=ACCOUNT)
    image = modal.Image.from_gcp_artifact_registry(f"{ADDRESS}/gcp/img:v1", secret=who)
    return inside(image, "cat", "/told")


def dockerfile(folder):
    """The same credentials for the FROM of a Dockerfile."""
    if "registry_secret" not in modal.Image.from_dockerfile.__doc__ + str(
        __import__("inspect").signature(modal.Image.from_dockerfile)
    ):
        return None
    file = folder / "Dockerfile"
    file.write_text(f"FROM {ADDRESS}/file/img:v1\nRUN echo more >> /told\n")
    who = secret(REGISTRY_USERNAME="me", REGISTRY_PASSWORD="hush")
    image = modal.Image.from_dockerfile(file, registry_secret=who)
    return inside(image, "cat", "/told")


def nobody():
    return inside(modal.Image.from_registry(f"{ADDRESS}/nobody/img:v1"), "cat", "/told")


def gone():
    return inside(modal.Image.from_registry("127.0.0.1:1/team/img:v1"), "cat", "/told")


def endless(command):
    who = secret(REGISTRY_USERNAME="me", REGISTRY_PASSWORD="hush")
    image = modal.Image.from_registry(f"{ADDRESS}/static/img:v1", secret=who)
    return inside(image.run_commands(command), "cat", "/told")


def main():
    sys.path.insert(0, str(HERE))
    from reporting import Report

    check = Report().check
    check("static", static, 200)
    check("static_wrong", lambda: static("not it"), 200)
    check("ecr", ecr, 200)
    check("ecr_wrong", lambda: ecr("AKIDOTHER"), 200)
    check("ecr_role", ecr_role, 200)
    check("gcp", gcp, 200)
    check("dockerfile", lambda: dockerfile(Path.cwd()), 200)
    check("nobody", nobody, 200)
    check("gone", gone, 200)
    check("fills", lambda: endless(FILL.strip().replace("\n", "; ").replace("do;", "do")), 200)
    check("forks", lambda: endless(FORK), 200)
    check("hangs", lambda: endless("sleep 100000"), 200)
    check("still", static, 200)


if __name__ == "__main__":
    main()
