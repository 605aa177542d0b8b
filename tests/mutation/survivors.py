"""What `make mutation` left alive, against the changes known to make no difference; ends with 1 where one is not among them.

A mutant that no test notices is either a test to be written or a change that means the same. The latter stand here, each with its reason: the function (of the
module, or any), a text of the line as changed (\\n: where it begins or ends), and why that is no fault.
"""
import subprocess
import sys
from pathlib import Path

SAME = [
    ("", "strict=None", "the lengths are equal by construction; strict says so to the reader"),
    ("", "strict=False", "the same"),
    ("schema.check_chunk", "reasons[at], )", "the same"), ("schema.check_file", "(good, found), )", "the same"),
    ("gate.group_checks", "zip(found, worse, )", "the same"),
    ("audit.record", 'locked(folder/"', "a lock's name: all who take it ask the same function"), ("breaker.alone", "", "the same"),
    ("", '"ASCII"', "the name of an encoding in capitals"), ("", '"UTF-8"', "the same"), ("", '"UTF-8-SIG"', "the same"),
    ("", '"STABLE"', "the name of a sort in capitals"),
    ("audit.write_head", 'canonical(head)+"\\n", ', "what is written is ASCII, so any encoding is"),
    ("audit.canonical", "allow_nan=None", "as false as False"), ("audit.read_head", 'head = ""', "as little a head as None"),
    ("audit.check_end", "rsplit(", "only the last line is looked at"), ("audit.check_end", "rstrip(", "a line ends in a brace"),
    ("audit.check_end", 'if (head["next"]) or True else None', "no line is unsealed from an empty text either"),
    ("drift.benjamini_hochberg", "np.asarray(p, ", "p-values are floats"),
    ("gate.group_checks", "else 1.5", "as far from significant as .5"), ("gate", "np.ones((2, ", "only the first row of the weights is used"),
    ("respond.decide", "against = None", "as empty as an empty text"),
    ("schema.sniff", "f.read(", "64 KiB hold any header"), ("schema.sniff", '.split(b"\\n", ', "only the first line is looked at"),
    ("schema.CountingFile.__init__", 'b"XXXX"', "a file without content never gets here"),
    ("schema.CountingFile.close", "self.closed = ", "nobody reads after the end"),
    ("schema.open_csv", "convert_options=", "the header is read as a row, so that Arrow takes every column for text anyway"),
    ("schema.open_csv", "\n)\n", "the same"),
    ("schema.csv_chunks", "[:len(table)], ", "whole numbers are int64 anyway"),
    ("schema.parquet_chunks", "[:81]", "how much of Arrow's words is quoted"),
    ("schema.check_column", "values.append(", "what stands in a bad row is dropped with it"),
    ("schema.check_column", "zero_copy_only=", "codes have no gaps, so they can be had either way"),
    ("schema.check_column", "lookup = np.array(values, ", "pandas makes the same column of either"),
    ("schema.check_column", "np.array(reasons, ", "texts are texts in either"),
    ("schema.check_file", "found[:2]", "no findings twice are no findings"),
    ("schema.with_rows", "or True else pd.DataFrame()", "rows that nobody wants are read, and not shown"),
    ("schema.with_rows", "open(path, ", "differs only where the machine's own encoding isn't UTF-8, which Python 3.11 in a C locale is, too"),
    ("schema.refuse", "sort=None", "as false as False"),
]


def mutmut(*words: str) -> str:
    return subprocess.run([Path(sys.executable).with_name("mutmut"), *words], capture_output=True, text=True, check=True).stdout


def place(mutant: str) -> str:
    """`health_predict.schema.xǁCountingFileǁclose__mutmut_1` as schema.CountingFile.close."""
    _, module, name = mutant.rpartition("__mutmut_")[0].split(".")
    return f"{module}.{name.removeprefix('x_').removeprefix('xǁ').replace('ǁ', '.')}"


def reason(where: str, line: str) -> str | None:
    return next((why for at, text, why in SAME if where.startswith(at) and text in f"\n{line}\n"), None)


def main() -> int:
    unknown, alive = [], [o.split(":")[0].strip() for o in mutmut("results").splitlines() if o.endswith((": survived", ": suspicious", ": no tests"))]
    for o in alive:
        line = next((k[1:].strip() for k in mutmut("show", o).splitlines() if k.startswith("+") and not k.startswith("+++")), "")
        if not reason(place(o), line): unknown.append(f"{o}\n    {line}")
    print(*unknown, f"{len(alive)} mutants survived; {len(unknown)} of them without a known reason", sep="\n")
    return bool(unknown)


if __name__ == "__main__": sys.exit(main())
