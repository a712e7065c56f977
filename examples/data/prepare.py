"""How `mp_transport.csv.gz` was made from the table of Ricci et al.: identifiers out, the number of elements in.

python examples/data/prepare.py ORIGINAL.csv.gz examples/data/mp_transport.csv.gz
"""

from __future__ import annotations

import csv
import gzip
import re
import sys
from pathlib import Path

COLUMNS = ["sigma_p", "sigma_n", "S_p", "S_n", "kappa_p", "kappa_n", "PF_p", "PF_n", "m_p", "m_n"]


def prepare(source: Path, target: Path) -> int:
    """Write the prepared table; returns its rows. The same input gives the same bytes."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with target.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, 0) as packed:
        packed.write((",".join(["n_elements", *COLUMNS]) + "\n").encode())
        for row in rows:
            elements = len(set(re.findall(r"[A-Z][a-z]?", row["pretty_formula"])))
            packed.write((",".join([str(elements), *(row[name] for name in COLUMNS)]) + "\n").encode())
    return len(rows)


if __name__ == "__main__":
    print(prepare(Path(sys.argv[1]), Path(sys.argv[2])), "rows")
