"""A real PostgreSQL, in a folder of its own, on a port of its own."""
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from rough import free_port


def programs() -> Path | None:
    """The folder of initdb and pg_ctl; Debian keeps it off the PATH."""
    found = [Path(o).parent for o in [shutil.which("pg_ctl") or ""] if o] + sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((o for o in found if (o / "initdb").exists() and (o / "pg_ctl").exists()), None)


class Postgres:
    """Started and stopped at will; what it holds stays."""
    def __init__(self):
        self.folder, self.port, self.bin = Path(tempfile.mkdtemp(prefix="postgres-")), free_port(), programs()
        # PostgreSQL refuses to run as root, as tests in a container do
        self.user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        if self.user: shutil.chown(self.folder, "postgres", "postgres")
        self.do("initdb", "-D", "data", "-U", "ward", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.start()

    def do(self, program: str, *given: str) -> None:
        done = subprocess.run([str(self.bin / program), *given], cwd=self.folder, capture_output=True, text=True, timeout=120, **self.user)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=40"
        subprocess.run([str(self.bin / "pg_ctl"), "-D", "data", "-l", "log", "-o", options, "-w", "start"], cwd=self.folder, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120, **self.user)

    def stop(self) -> None: self.do("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")

    def create(self, name: str) -> str:
        """A new database; its address, with a password that nothing may show."""
        import psycopg
        with psycopg.connect(f"host=127.0.0.1 port={self.port} user=ward dbname=postgres", autocommit=True) as c: c.execute(f"create database {name}")
        return f"postgresql://ward:s3cret@127.0.0.1:{self.port}/{name}"

    def end(self) -> None:
        subprocess.run([str(self.bin / "pg_ctl"), "-D", "data", "-m", "immediate", "stop"], cwd=self.folder, capture_output=True, timeout=60, **self.user)
        shutil.rmtree(self.folder)
