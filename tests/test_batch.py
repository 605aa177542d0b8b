"""Batches: three formats, order kept, bad rows in their place, bounded memory, honest refusals."""
import csv
import io
import json
import threading

import pytest
from conftest import as_request, faults


@pytest.fixture(scope="module")
def rows(cohort): return [as_request(o) for o in cohort.head(300).to_dict("records")]


def sheet(rows) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def test_every_format_gives_what_single_requests_give(server, rows):
    single = [server.post("/predict", json=o).json() for o in rows[:40]]
    array = server.post("/predict/batch", json=rows)
    lines = server.post("/predict/batch", data="\n".join(map(json.dumps, rows)), headers={"Content-Type": "application/x-ndjson"})
    table = server.post("/predict/batch", data=sheet(rows), headers={"Content-Type": "text/csv"})
    assert [o.headers["X-Rows"] for o in (array, lines, table)] == ["300"] * 3 and array.headers["X-Refused"] == "0"
    told = array.json()
    assert [o["row"] for o in told] == list(range(300)) and told == [json.loads(o) for o in lines.text.splitlines()]
    for one, of_many in zip(single, told, strict=False):
        for t in ("any", "30d"): assert one["risks"][t]["probability_score"] == pytest.approx(of_many["risks"][t]["probability_score"], abs=1e-6)
        assert one["warnings"] == of_many["warnings"]
    cells = list(csv.DictReader(io.StringIO(table.text)))
    assert [float(o["probability_score"]) for o in cells] == [o["probability_score"] for o in told]


def test_bad_rows_have_their_errors_in_their_place(server, rows):
    bad = {3: rows[3] | {"age": "banana"}, 5: 7, 250: rows[250] | {"discharge_disposition_id": 11}}
    told = server.post("/predict/batch", json=[bad.get(i, o) for i, o in enumerate(rows)]).json()
    assert [i for i, o in enumerate(told) if "detail" in o] == [3, 5, 250]
    assert told[3]["detail"] == server.post("/predict", json=bad[3]).json()["detail"]
    lines = [json.dumps(o) for o in rows[:3]] + ['{"age": ', "", json.dumps(rows[3]), "x" * 200_000, json.dumps(rows[4])]
    answer = server.post("/predict/batch", data="\n".join(lines), headers={"Content-Type": "application/x-ndjson"})
    assert ["detail" in json.loads(o) for o in answer.text.splitlines()] == [False, False, False, True, False, True, False]


@pytest.mark.parametrize("body, kind", [(b"", "application/json"), (b"{}", "application/json"), (b"[1,", "application/json"), (b"[]x", "application/json"),
    (b'[{"a":1} {"b":2}]', "application/json"), (b'["' + b"x" * 100_000 + b'"]', "application/json"), (b"\xff\xfe\n1", "text/csv"),
    (b"a\n" + b'"\n' + b"x\n" * 100_000, "text/csv")], ids=lambda o: str(o[:12]))
def test_unreadable_bodies_are_refused_whole(server, body, kind):
    assert faults(server.post("/predict/batch", data=body, headers={"Content-Type": kind}))


def test_empty_batches_and_other_types(server):
    assert server.post("/predict/batch", json=[]).json() == []
    assert server.post("/predict/batch", data=b"", headers={"Content-Type": "text/csv"}).text.count("\n") == 1
    assert faults(server.post("/predict/batch", data=b"x", headers={"Content-Type": "image/png"}), 415)


@pytest.mark.parametrize("body, rows", [(b"a,a\n1,2\n", 1), (b'a,b\n"1', 1), (b"a,b\n1\n1,2,3\n", 2), (b",,\n\n", 0)])
def test_odd_tables_are_refused_row_by_row(server, body, rows):
    told = server.post("/predict/batch", data=body, headers={"Content-Type": "text/csv", "Accept": "application/json"}).json()
    assert len(told) == rows and all("detail" in o for o in told)


@pytest.mark.parametrize("separator, named", [(";", "';'"), ("\t", r"'\t'"), ("|", "'|'")])
def test_another_separator_is_named(server, rows, separator, named):
    body = sheet(rows).replace(b",", separator.encode())
    assert named in faults(server.post("/predict/batch", data=body, headers={"Content-Type": "text/csv"}))["body"]


def test_size_limit(serve, models, rows):
    server = serve(models("small"), max_batch=20_000)
    server.wait()
    assert len(server.post("/predict/batch", json=rows[:5]).json()) == 5
    assert faults(server.post("/predict/batch", json=rows), 413)
    assert faults(server.post("/predict/batch", data=iter([json.dumps(rows).encode()]), headers={"Content-Type": "application/json"}), 413)    # chunked


def test_many_rows_in_bounded_memory(serve, models, rows):
    """20,000 rows, sent as they are made and read as they come."""
    server = serve(models("many"))
    server.wait()
    worker, before = server.workers[0], server.workers[0].memory_info().rss
    pieces = (json.dumps(rows[i % 300]).encode() + b"\n" for i in range(20_000))
    with server.post("/predict/batch", data=pieces, headers={"Content-Type": "application/x-ndjson"}, stream=True) as answer:
        told = [json.loads(o) for o in answer.iter_lines()]
    assert [o["row"] for o in told] == list(range(20_000)) and not any("detail" in o for o in told)
    assert told[0]["probability_score"] == pytest.approx(told[300]["probability_score"], abs=1e-6)
    assert worker.memory_info().rss - before < 60e6


@pytest.mark.slow
def test_memory_does_not_grow_with_the_batch(serve, models, rows):
    """Three times the rows, the same peak: 100,000 and 300,000, sent as they are made."""
    server = serve(models("larger"), log_queue=5000)
    server.wait()
    block, worker = ("\n".join(map(json.dumps, rows)) + "\n").encode(), server.workers[0]

    def peak(count: int) -> float:
        done, highest = threading.Event(), []

        def watch():
            while not done.wait(.05): highest.append(worker.memory_info().rss)
        watching = threading.Thread(target=watch)
        watching.start()
        try:
            sent = (block for _ in range(count // len(rows)))
            with server.post("/predict/batch", data=sent, headers={"Content-Type": "application/x-ndjson"}, stream=True) as answer:
                assert sum(o.count(b"\n") for o in answer.iter_content(1 << 20)) == count // len(rows) * len(rows)
        finally: done.set(); watching.join()
        return max(highest)

    small, large = peak(100_000), peak(300_000)
    assert large - small < 20e6 and large < 250e6
