"""The machine's user-data, run for real: cloud-init runs it in a Debian 12 of its own (debootstrap, chroot), as root, with real packages, disk, TLS and pip.

What cannot be had there, and stands in:
- `systemctl`: writes down what it was asked; at `start health-predict.service` it runs the unit's first ExecStart, bootstrap.sh. The second,
  `health-predict up`, has tests of its own.
- `aws`: gives the release and the parameters out of a folder; AWS can also be away.
- github.com and AWS's buckets: a local HTTPS server that the root's hosts file names; Minikube and the two agents from there are empty shells.
- The release is this working tree, with a lock file cut to what the command line needs.
"""
import base64
import hashlib
import http.server
import importlib.metadata
import json
import os
import re
import shutil
import ssl
import subprocess
import tarfile
import tempfile
import threading
from pathlib import Path

import pytest
import trustme
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
MACHINE = ROOT / "terraform/modules/machine"
HOSTS = ("github.com", "s3.eu-west-1.amazonaws.com", "amazoncloudwatch-agent-eu-west-1.s3.eu-west-1.amazonaws.com")
ADDRESS = "127.0.42.1"
VOLUME = "vol-0a1b2c3d4e5f60718"
PASSWORD = "quite-" + "secret"

SYSTEMCTL = """#!/bin/bash
case $1 in
  is-enabled) grep -q "^enable .*${!#}$" /test/systemctl.log; exit ;;
  is-active) grep -q "^restart ${!#}$" /test/systemctl.log; exit ;;
esac
echo "$*" >> /test/systemctl.log
if [ "$1" = start ] && [ "${!#}" = health-predict.service ]; then exec $(sed -n 's/^ExecStart=//p' /etc/systemd/system/health-predict.service | head -1); fi
"""
AWS = """#!/bin/sh
[ ! -e /test/away ] || { echo 'Could not connect to the endpoint URL' >&2; exit 255; }
case "$1 $2" in
  's3 cp') exec cp "/test/s3/${4##*/}" "$5" ;;
  'ssm get-parameters-by-path') exec cat /test/parameters.json ;;
esac
echo "aws $*: not expected" >&2; exit 2
"""
CLOUD = """datasource_list: [NoCloud]
network: {config: disabled}
cloud_init_modules: [write-files]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user]
"""
# In its own mounts, processes and host name: a /dev with the few devices that are needed, and the data disk where EC2 shows it.
DRIVE = """set -euo pipefail
root=$1; loop=$2; shift 2
mount --make-rprivate /
hostname machine
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev"
for o in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
  IFS=: read -r name major minor <<< "$o"
  mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir -p "$root/dev/shm" "$root/dev/disk/by-id"
mknod "$root/dev/loop" b $(stat --format='0x%t 0x%T' "$loop")
ln -s /dev/loop "$root/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_VOLUME"
if grep -qs /srv/health-predict "$root/etc/fstab"; then chroot "$root" mount /srv/health-predict; fi    # as a boot does
exec chroot "$root" env -i HOME=/root PATH=/test/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 "$@"
""".replace("VOLUME", VOLUME.replace("-", ""))


def system(*words: str | Path, **options) -> str:
    """Run a program of this machine; gives what it printed."""
    done = subprocess.run([shutil.which(words[0]) or words[0], *words[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, **options)
    assert done.returncode == 0, f"{words[0]}: exit code {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout


def sha256(file: Path) -> str: return hashlib.sha256(file.read_bytes()).hexdigest()


def lock_of_the_command_line() -> str:
    """The lock file's lines for what the package needs without its extras, hashes included."""
    wanted, todo = {"uv", "setuptools"}, ["health-predict"]
    while todo:
        for o in map(Requirement, importlib.metadata.requires(todo.pop()) or []):
            name = re.sub(r"[-_.]+", "-", o.name).lower()
            if (o.marker is None or o.marker.evaluate({"extra": ""})) and name not in wanted:
                wanted.add(name)
                todo.append(name)
    blocks = re.split(r"(?m)^(?=[a-z])", (ROOT / "requirements.lock").read_text())
    return "".join(o for o in blocks if re.split(r"[=\[ ]", o)[0] in wanted)


def make_release(file: Path) -> Path:
    """A release archive of the working tree, as `git archive` makes one of a tag."""
    names = system("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\n")
    lock = file.with_name("requirements.lock")
    lock.write_text(lock_of_the_command_line())
    with tarfile.open(file, "w:gz") as made:
        for name in filter(None, names):
            if name != "requirements.lock" and (ROOT / name).is_file(): made.add(ROOT / name, f"health-predict-0/{name}")
        made.add(lock, "health-predict-0/requirements.lock")
    return file


def make_deb(name: str, file: Path) -> Path:
    """A package of the name that AWS's has; in it, the program that takes a configuration."""
    folder = file.with_suffix("")
    (folder / "DEBIAN").mkdir(parents=True)
    control = folder / f"opt/aws/{name}/bin/{name}-ctl"
    for o in (control.parent, control.parents[1] / "etc"): o.mkdir(parents=True)
    control.write_text("#!/bin/sh\npython3 -m json.tool ${7#file:} > /dev/null && echo restart amazon-cloudwatch-agent.service >> /test/systemctl.log\n")
    control.chmod(0o755)
    (folder / "DEBIAN/control").write_text(f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: stands in\n")
    system("dpkg-deb", "--build", "--root-owner-group", folder, file)
    return file


def render(release: dict, minikube: str) -> str:
    """user-data as terraform renders it: the real template and script, this machine's values."""
    settings = {"HEALTH_PREDICT_STORAGE": "/srv/health-predict/storage", "HEALTH_PREDICT_RUN__SCHEDULE": "30 4 * * *",
        "HEALTH_PREDICT_ALERT__EMAIL_TO": "a b $HOME `id`"}
    bootstrap = {"NAME": "health-predict", "AWS_REGION": "eu-west-1", "RELEASE_URL": release["url"], "RELEASE_SHA256": release["sha256"],
        "MINIKUBE_VERSION": "1.38.1", "MINIKUBE_SHA256": minikube, "LOG_GROUP": "/health-predict/machine", "DATA_VOLUME": VOLUME, "MLFLOW": "yes",
        "SSM_URL": f"https://{HOSTS[1]}/amazon-ssm-eu-west-1/latest/debian_amd64/amazon-ssm-agent.deb", "SSM_SHA256": "",
        "CLOUDWATCH_URL": f"https://{HOSTS[2]}/debian/amd64/latest/amazon-cloudwatch-agent.deb", "CLOUDWATCH_SHA256": "",
        "API_LISTEN": "127.0.0.1:8000", "NODE_PORT": "30080"}
    lines = {k: "\n".join(f"{a}='{b}'" for a, b in v.items()) for k, v in (("bootstrap", bootstrap), ("settings", settings))}
    said = ", ".join(f"{k} = jsondecode({json.dumps(json.dumps(v)).replace('${', '$${')})" for k, v in lines.items())
    asked = f'base64encode(templatefile("{MACHINE}/user_data.yaml.tftpl", {{{said}, script = base64gzip(file("{MACHINE}/bootstrap.sh"))}}))\n'
    with tempfile.TemporaryDirectory() as empty:
        (Path(empty) / "none.rc").touch()
        environment = os.environ | {"CHECKPOINT_DISABLE": "1", "TF_CLI_CONFIG_FILE": f"{empty}/none.rc"}
        answer = system("terraform", f"-chdir={empty}", "console", input=asked, env=environment)
    return base64.b64decode(answer.strip().strip('"')).decode()


@pytest.fixture(scope="module")
def debian():
    """A folder with Debian 12 and cloud-init, made once and kept in the cache."""
    missing = [o for o in ("debootstrap", "unshare", "losetup", "terraform") if not shutil.which(o)]
    if os.geteuid() or missing: pytest.skip(f"needs root, and {', '.join(missing) or 'nothing else'}")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "health-predict"
    kept = cache / "debian-12-cloud-init.tar"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = cache / f"debian.{os.getpid()}"
        system("debootstrap", "--variant=minbase", "bookworm", made)
        (made / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")    # packages start no services in here
        (made / "usr/sbin/policy-rc.d").chmod(0o755)
        shutil.copy("/etc/resolv.conf", made / "etc/resolv.conf")
        system("chroot", made, "sh", "-ec", "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update; "
            "apt-get -qq install -y --no-install-recommends ca-certificates cloud-init e2fsprogs iproute2; apt-get clean")
        system("tar", "-C", made, "-cf", kept.with_suffix(".part"), ".")
        kept.with_suffix(".part").rename(kept)
        shutil.rmtree(made)
    return kept


class Machine:
    """A Debian root that boots as often as you like."""
    def __init__(self, root: Path, loop: str): self.root, self.loop = root, loop

    def run(self, script: str, code: int = 0) -> str:
        """Run a script in a new boot of the machine; gives what it printed."""
        passed_on = ("PIP_INDEX", "UV_INDEX", "UV_DEFAULT_INDEX", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
        environment = [f"{k}={v}" for k, v in os.environ.items() if k.startswith(passed_on)]
        environment += [f"{k}=/etc/ssl/certs/ca-certificates.crt" for k in ("SSL_CERT_FILE", "PIP_CERT")]
        own = [shutil.which("unshare"), "--mount", "--uts", "--pid", "--fork", "--kill-child"]
        done = subprocess.run([*own, "bash", "-c", DRIVE, "drive", self.root, self.loop, *environment, "bash", "-c", f"set -e\n{script}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-4000:]}"
        return done.stdout

    def read(self, path: str) -> str: return (self.root / path.lstrip("/")).read_text()

    def put(self, path: str, text: str, mode: int = 0o644):
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)


@pytest.fixture(scope="module")
def machine(debian, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("machine")
    root, web = tmp / "root", tmp / "web"
    for o in (root, web): o.mkdir()
    system("tar", "-C", root, "-xf", debian)
    made = Machine(root, "")
    # What comes from elsewhere.
    for name in ("amazon-ssm-agent", "amazon-cloudwatch-agent"): make_deb(name, web / f"{name}.deb")
    minikube = web / "minikube-linux-amd64"
    minikube.write_text("#!/bin/sh\nexit 0\n")
    (root / "test/s3").mkdir(parents=True)
    release = make_release(root / "test/s3/health-predict-0.tar.gz")
    made.release = {"url": f"s3://releases/{release.name}", "sha256": sha256(release)}
    made.user_data = render(made.release, sha256(minikube))
    made.put("/test/parameters.json", json.dumps({"Parameters": [{"Name": "/health-predict/HEALTH_PREDICT_ALERT__EMAIL_PASSWORD", "Value": PASSWORD},
        {"Name": "/health-predict/PATH", "Value": "/evil"}, {"Name": "/health-predict/HEALTH_PREDICT_ALERT__EMAIL_USER", "Value": "a'; rm -rf /"}]}))
    made.put("/test/bin/systemctl", SYSTEMCTL, 0o755)
    made.put("/test/bin/aws", AWS, 0o755)
    # Whom it trusts, and where names lead.
    authority = trustme.CA()
    for o in Path("/usr/local/share/ca-certificates").glob("*.crt"): made.put(f"/usr/local/share/ca-certificates/{o.name}", o.read_text())
    made.put("/usr/local/share/ca-certificates/stand-in.crt", authority.cert_pem.bytes().decode())
    made.put("/etc/hosts", f"127.0.0.1 localhost\n{ADDRESS} {' '.join(HOSTS)}\n")
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    if Path("/etc/pip.conf").exists(): shutil.copy("/etc/pip.conf", root / "etc/pip.conf")
    # What EC2 hands to cloud-init.
    made.put("/etc/cloud/cloud.cfg.d/99-test.cfg", CLOUD)
    made.put("/var/lib/cloud/seed/nocloud/meta-data", "instance-id: i-0\nlocal-hostname: machine\n")
    made.put("/var/lib/cloud/seed/nocloud/user-data", made.user_data)

    class Answers(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *a): super().__init__(*a, directory=str(web))
        def translate_path(self, path): return str(web / path.rsplit("/", 1)[-1])
        def log_message(self, *a): pass

    server = http.server.ThreadingHTTPServer((ADDRESS, 443), Answers)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*HOSTS).configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    disk = tmp / "disk.img"
    with open(disk, "wb") as f: f.truncate(256 << 20)
    made.loop = system("losetup", "--find", "--show", disk).strip()
    try: yield made
    finally:
        system("losetup", "--detach", made.loop)
        server.shutdown()
        server.server_close()


# Every file and folder with its content, rights and owner, but for what any program may write.
SNAPSHOT = r"""skip='-path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /run -o -path /var/log -o -path /test'
find / /srv/health-predict -xdev \( $skip \) -prune -o -printf '%p %y %m %u:%g %l\n' | sort > "/test/$1"
find / /srv/health-predict -xdev \( $skip -o -path '/opt/*/.venv' -o -path /var/spool/cron \) -prune -o -type f -print0 |
  sort -z | xargs -0 sha256sum >> "/test/$1"
crontab -u health-predict -l >> "/test/$1"    # its file has the time of writing at the top
"""
BOOTSTRAP = "/usr/local/lib/health-predict/bootstrap.sh"


@pytest.mark.slow
def test_user_data(machine):
    """cloud-init accepts and runs it; a second boot changes nothing; AWS away, and a release with another checksum, do no harm."""
    assert PASSWORD not in machine.user_data
    machine.put("/test/snapshot", SNAPSHOT)
    first = machine.run("""
        update-ca-certificates > /dev/null 2>&1
        cloud-init schema --config-file /var/lib/cloud/seed/nocloud/user-data
        cloud-init init
        cloud-init modules --mode=config
        cloud-init modules --mode=final
        bash /test/snapshot one
        runuser -u health-predict -- health-predict --version
        crontab -u health-predict -l""")
    for said in ("Valid cloud-config", "installed amazon-ssm-agent", f"made a file system on {VOLUME}", "installed minikube 1.38.1",
        "is current", "health-predict 1."):
        assert said in first, first
    assert "30 4 * * * /srv/health-predict/storage/state/scheduled.sh" in first
    assert machine.read("/test/systemctl.log").startswith("daemon-reload\nenable health-predict.service\nstart --no-block health-predict.service\n")
    assert "enable --quiet health-predict-api.socket" in machine.read("/test/systemctl.log")
    # Secrets come from SSM, for one user, and only what is a setting.
    assert machine.read("/etc/health-predict/secrets.env") == f"HEALTH_PREDICT_ALERT__EMAIL_PASSWORD='{PASSWORD}'\n"
    assert oct((machine.root / "etc/health-predict/secrets.env").stat().st_mode)[-3:] == "640"
    assert "EMAIL_USER: has a quote" in first and "/health-predict/PATH: not the name of a setting" in first

    asked = machine.read("/test/systemctl.log")
    second = machine.run(f"{BOOTSTRAP}; bash /test/snapshot two")
    assert "nothing had to change" in second
    assert machine.read("/test/two") == machine.read("/test/one") and machine.read("/test/systemctl.log") == asked

    machine.put("/test/away", "")
    assert "secrets could not be read" in machine.run(f"{BOOTSTRAP}; bash /test/snapshot two")
    assert machine.read("/test/two") == machine.read("/test/one")
    (machine.root / "test/away").unlink()

    current = os.readlink(machine.root / "opt/health-predict/current")
    refused = machine.run(f"sed -i \"s/^RELEASE_SHA256='..../RELEASE_SHA256='0000/\" /etc/health-predict/bootstrap.env; {BOOTSTRAP}", code=1)
    assert f"has the SHA-256 {machine.release['sha256']}, not 0000" in refused
    assert os.readlink(machine.root / "opt/health-predict/current") == current and (machine.root / current.lstrip("/") / ".venv/bin/health-predict").exists()
