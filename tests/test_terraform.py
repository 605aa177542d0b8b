"""Terraform: formatted, valid, keeps its promises on a pretended provider; applied to moto's server, and then there is nothing left to do."""
import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
import requests
import yaml

from conftest import at_hand

HERE = Path(__file__).parents[1] / "terraform"
REGION, RELEASE = "eu-west-1", {"url": "s3://releases/health-predict-1.0.0.tar.gz", "sha256": "0" * 64}
# moto speaks HTTP with paths in place of bucket hosts, and knows no accounts' names.
AWAY = 'provider "aws" {\n  s3_use_path_style = true\n  skip_metadata_api_check = true\n}\n'


def system(*words: str | Path, **options) -> subprocess.CompletedProcess:
    """Run a program of this machine; the test is skipped, in words, where it isn't."""
    program = shutil.which(words[0])
    if not program: pytest.skip(f"{words[0]} is not installed")
    return subprocess.run([program, *words[1:]], capture_output=True, text=True, timeout=600, **options)


def terraform(folder: Path, *words: str, code: int = 0, **environment: str) -> str:
    """Run terraform in a folder; gives what it printed."""
    done = system("terraform", f"-chdir={folder}", words[0], "-no-color", *words[1:], env=os.environ | {"CHECKPOINT_DISABLE": "1"} | environment)
    assert done.returncode == code, f"terraform {' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """The environment of a terraform that finds the AWS provider on disk and asks no network."""
    named = at_hand("TEST_TF_MIRROR", "Terraform's AWS provider, a folder made by `terraform providers mirror`")
    config = tmp_path_factory.mktemp("cli") / "terraform.rc"
    config.write_text(f'disable_checkpoint = true\nprovider_installation {{\n  filesystem_mirror {{\n    path = "{named}"\n  }}\n}}\n')
    return {"TF_CLI_CONFIG_FILE": str(config)}


@pytest.fixture
def folder(tmp_path):
    """A copy of terraform/, since terraform leaves things beside what it reads."""
    return Path(shutil.copytree(HERE, tmp_path / "terraform", ignore=shutil.ignore_patterns(".terraform", "*.tfstate*", "backend.hcl", "terraform.tfvars")))


def test_format(tmp_path):
    config = tmp_path / "terraform.rc"
    config.touch()
    assert terraform(HERE, "fmt", "-check", "-recursive", TF_CLI_CONFIG_FILE=str(config)) == ""


def test_script_lints():
    done = system("shellcheck", HERE / "modules/machine/bootstrap.sh")
    assert done.returncode == 0, done.stdout


def test_each_exception_has_a_reason():
    skips = [line.split("checkov:skip=")[1] for file in HERE.rglob("*.tf") for line in file.read_text().splitlines() if "checkov:skip=" in line]
    assert skips and all(len(o.partition(":")[2]) > 20 for o in skips), skips


@pytest.mark.slow
def test_promises(folder, mirror):
    """The tests in terraform/tests: IAM without wildcards, IMDSv2, encryption, nothing public, and variables that refuse what can't be right."""
    terraform(folder, "init", "-backend=false", **mirror)
    terraform(folder, "validate", **mirror)
    assert "6 passed, 0 failed" in terraform(folder, "test", **mirror)


@pytest.fixture
def aws(monkeypatch):
    """moto's server: an account of its own, empty."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"): monkeypatch.delenv(name, raising=False)
    for name, value in {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "3"}.items(): monkeypatch.setenv(name, value)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([Path(sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", str(port)], **quiet) as server:
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                try:
                    if requests.get(f"{url}/moto-api/data.json", timeout=5).ok: break
                except requests.ConnectionError: time.sleep(.05)
            yield url
        finally: server.terminate()


@pytest.mark.slow
def test_apply(folder, mirror, aws):
    """From an empty account: the state's bucket, everything else with its state in there, a second plan that changes nothing, nothing left after destroy."""
    for o in (folder, folder / "bootstrap"): (o / "away_override.tf").write_text(AWAY)
    (folder / "modules/machine/away_override.tf").write_text('resource "aws_instance" "this" {\n  monitoring = false\n}\n')    # moto has no MonitorInstances
    shutil.copy(folder / ".terraform.lock.hcl", folder / "bootstrap")
    say = ["-input=false", f"-var=region={REGION}", "-var=protect=false"]
    terraform(folder / "bootstrap", "init", **mirror)
    terraform(folder / "bootstrap", "apply", "-auto-approve", *say, **mirror)
    backend = terraform(folder / "bootstrap", "output", "-raw", "backend", **mirror)
    (folder / "backend.hcl").write_text(backend + "use_path_style = true\nskip_metadata_api_check = true\n")

    ec2, iam, s3 = boto3.client("ec2"), boto3.client("iam"), boto3.client("s3")
    # moto takes the policy's Deny and not its Condition (no TLS), so nobody could reach the state.
    s3.delete_bucket_policy(Bucket=next(o["Name"] for o in s3.list_buckets()["Buckets"]))
    s3.create_bucket(Bucket="releases", CreateBucketConfiguration={"LocationConstraint": REGION})
    image = ec2.describe_images()["Images"][0]["ImageId"]
    say += [f"-var=ami={image}", f"-var=release={json.dumps(RELEASE)}", '-var=inbound_cidrs=["10.0.0.0/16"]', "-var=alarm_email=operations@example.org"]
    terraform(folder, "init", "-backend-config=backend.hcl", **mirror)
    terraform(folder, "apply", "-auto-approve", *say, **mirror)
    terraform(folder, "plan", "-detailed-exitcode", *say, **mirror)    # 0: nothing to change, 2: something

    made = json.loads(terraform(folder, "output", "-json", **mirror))
    machine = ec2.describe_instances(InstanceIds=[made["instance_id"]["value"]])["Reservations"][0]["Instances"][0]
    assert machine["MetadataOptions"]["HttpTokens"] == "required"
    # Every name that bootstrap.sh reads is in the file that user-data writes.
    sent = ec2.describe_instance_attribute(InstanceId=made["instance_id"]["value"], Attribute="userData")["UserData"]["Value"]
    written = yaml.safe_load(base64.b64decode(sent))["write_files"][0]["content"]
    script = (HERE / "modules/machine/bootstrap.sh").read_text()
    own = set(re.findall(r"^([A-Z_]+)=", script, re.M)) | {"AWS_DEFAULT_REGION", "DEBIAN_FRONTEND"}
    assert set(re.findall(r"\$\{?([A-Z][A-Z0-9_]+)", script)) - own <= set(re.findall(r"^([A-Z0-9_]+)='", written, re.M))
    role = next(o["RoleName"] for o in iam.list_roles(PathPrefix="/")["Roles"] if o["RoleName"].endswith("-machine"))
    policy = iam.get_role_policy(RoleName=role, PolicyName="health-predict")["PolicyDocument"]
    assert not [a for o in policy["Statement"] for a in o["Action"] if "*" in a]
    bucket = made["storage"]["value"].split("/")[2]
    assert s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"] == dict.fromkeys(
        ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    state = next(o["Name"] for o in s3.list_buckets()["Buckets"] if "-state-" in o["Name"])
    keys = [o["Key"] for o in s3.list_objects_v2(Bucket=state)["Contents"]]
    assert keys == ["health-predict.tfstate"]

    # Whoever works on the state at the same time is told so.
    s3.put_object(Bucket=state, Key="health-predict.tfstate.tflock", Body=json.dumps({"ID": "1", "Operation": "OperationTypeApply", "Who": "a colleague"}))
    with pytest.raises(AssertionError, match="a colleague"): terraform(folder, "plan", *say, **mirror)
    s3.delete_object(Bucket=state, Key="health-predict.tfstate.tflock")

    terraform(folder, "destroy", "-auto-approve", *say, **mirror)
    assert not [o for o in s3.list_buckets()["Buckets"] if o["Name"] not in (state, "releases")]
    assert {o["State"]["Name"] for r in ec2.describe_instances()["Reservations"] for o in r["Instances"]} == {"terminated"}
