"""What a thousand batches in S3 cost: status, the search for the next batch, publishing one more; with 10 batches there and with 1,000.

    python tests/benchmarks/storage.py [--batches 1000] [--latency 0.02] [--new]

S3 is moto's server, filled before; a proxy adds the latency of each request and counts them. The ratio is that of 1,000 batches to 10. moto looks at every key
for each listing, as S3 does not: the number of requests tells more than the time.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from health_predict.audit import record
from health_predict.ledger import Known
from health_predict.mirror import pull, push, status
from health_predict.settings import load_settings
from health_predict.storage import Tree, write_json
from health_predict.turn import next_turn, read_kept

sys.path.insert(0, str(Path(__file__).parents[1]))
from rough import AWS, Rough

FILLED = """
import json, sys, time
from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from moto.s3.models import s3_backends
s3, n = s3_backends[DEFAULT_ACCOUNT_ID]["aws"], int(sys.argv[1])
s3.create_bucket("bucket", "us-east-1")
put = lambda key, value=b"{}": s3.put_object("bucket", "ward/"+key, value)
for b in range(n):
    for o in ("ingest", "drift", "decision", "evaluation", "promotion", "publish"): put(f"runs/{b}/{o}.json")
    for o in range(1, 9):
        for kind in ("ipynb", "html"): put(f"runs/{b}/{o}_stage.{kind}")
        put(f"reports/{b}/stage{o}.html")
    put(f"runs/{b}/encounters.parquet", b"x"*1000); put(f"incoming/{b}.csv"); put(f"labels/{b}.parquet"); put(f"quarantine/{b}.csv")
    put(f"reports/{b}/summary.json", json.dumps({"batch": b, "state": "published", "stages": {}}).encode())
put("reports/index.html")
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
time.sleep(3600)
"""


def next_batch(settings) -> int | None:
    """Whose turn it is, as a run sees it."""
    pull(settings)
    return next_turn(settings, read_kept(Tree(settings))).batch


def measured(proxy: Rough, work) -> tuple[float, int]:
    """Seconds and requests; of several tries the fastest."""
    tries = []
    for _ in range(3):
        proxy.asked.clear()
        began = perf_counter()
        work()
        tries.append((perf_counter() - began, len(proxy.asked)))
    return min(tries)


def with_batches(n: int, latency: float, new: bool, folder: Path) -> dict[str, tuple[float, int]]:
    server = subprocess.Popen([sys.executable, "-c", FILLED, str(n)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    proxy = Rough(int(server.stdout.readline()), slow=1, latency=latency)
    try:
        os.environ |= AWS | {"AWS_ENDPOINT_URL": proxy.url, "AWS_DEFAULT_REGION": "us-east-1"}
        settings = load_settings(storage={"root": str(folder / str(n)), "remote": "s3://bucket/ward"})
        tree, found, began = Tree(settings), {}, perf_counter()
        if new:
            assert len(pull(settings)) > 8 * n
            found["a new machine"] = perf_counter() - began, len(proxy.asked)
        else:    # the machine that made them all: its summaries and its notes
            known = Known(tree, settings.storage.remote)
            for b in range(n): write_json(tree.reports / str(b) / "summary.json", {"batch": b, "state": "published", "stages": {}})
            known.facts["seen"] = list(range(n))
            known.save()
            pull(settings)
        found["status"] = measured(proxy, lambda: status(settings))
        found["the next batch"] = measured(proxy, lambda: next_batch(settings))
        assert next_batch(settings) is None
        published = iter(range(n, n + 3))
        def publish():
            b = next(published)
            for o in range(60): write_json(tree.run(b) / f"{o}.json", [b, o])
            for o in range(10): write_json(tree.reports / str(b) / f"{o}.html", [b, o])
            write_json(tree.reports / str(b) / "summary.json", {"state": "published", "stages": {}})
            record(tree, "decision", b, {})
            push(settings, b)
        found["publishing"] = measured(proxy, publish)
        return found
    finally:
        proxy.stop()
        server.kill()
        server.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--latency", type=float, default=.02, help="of each request; seconds")
    parser.add_argument("--new", action="store_true", help="measure also a machine that has nothing yet, which fetches what later builds read of all batches")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as d:
        few, many = (with_batches(n, given.latency, given.new, Path(d)) for n in (10, given.batches))
    print(f"{'':16}{'10 batches':>22}{f'{given.batches:,} batches':>22}{'ratio':>8}")
    for name, (seconds, requests) in many.items():
        print(f"{name:16}{few[name][0]:8.2f} s {few[name][1]:6} req{seconds:10.2f} s {requests:6} req{seconds / few[name][0]:8.1f}")
