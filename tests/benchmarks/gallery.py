"""What the gallery costs as batches come in: written from nothing, and renewed when one more batch was published.

    python tests/benchmarks/gallery.py [--batches 10 100 1000 5000]

Each line is the best of three runs on made-up summaries in a folder of its own. `renewed` is what a run pays; `read` is reading all summaries,
which the index saves.
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_gallery import filled, summary

from health_predict.gallery import renewed, write_gallery
from health_predict.storage import Tree


def best(work, before=lambda: None, times: int = 3) -> float:
    """Seconds of the quickest of some runs."""
    found = []
    for _ in range(times):
        before()
        start = perf_counter()
        work()
        found.append(perf_counter() - start)
    return min(found)


def measured(n: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        settings = filled(Path(folder), n)
        reports = Tree(settings).reports
        def touch():    # one batch was published again
            (reports / str(n - 1) / "summary.json").write_text(json.dumps(summary(n - 1) | {"seconds": perf_counter()}))
        anew = best(lambda: write_gallery(settings), lambda: (reports / "index.json").unlink())
        return {"anew": anew, "renewed": best(lambda: write_gallery(settings), touch), "read": best(lambda: renewed(reports, {})),
                "page": (reports / "index.html").stat().st_size / 1e3, "index": (reports / "index.json").stat().st_size / 1e3}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[10, 100, 1000])
    found = {n: measured(n) for n in parser.parse_args().batches}
    print(f"{'batches':>8} {'anew ms':>9} {'renewed ms':>11} {'read ms':>9} {'index.html kB':>14} {'index.json kB':>14}")
    for n, o in found.items():
        print(f"{n:>8,} {o['anew'] * 1e3:>9.0f} {o['renewed'] * 1e3:>11.0f} {o['read'] * 1e3:>9.0f} {o['page']:>14,.0f} {o['index']:>14,.0f}")
    few, many = min(found), max(found)
    print(f"{many / few:.0f} times the batches: {found[many]['renewed'] / found[few]['renewed']:.1f} times the time to renew")


if __name__ == "__main__": main()
