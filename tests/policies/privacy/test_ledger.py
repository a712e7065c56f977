"""The ledger, on SQLite and on PostgreSQL: nothing is spent that is not on it, and nothing on it can be taken back."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sqlalchemy import create_engine, text

from genward.errors import CheckFailed, Conflict, IntegrityError, NotFound, Unavailable
from genward_policies.privacy import accounting as a
from genward_policies.privacy.ledger import Ledger, row_hashes

DELTA = 1e-5
ONE = a.gaussian(a.sigma_for(a.rho_for(1.0, DELTA)))  # epsilon 1
Open = Callable[[str], Ledger]


def _claim(ledger: Ledger, run: str = "r", data: str = "d", lineage: tuple[str, ...] = (), **given: Any) -> Any:
    return ledger.reserve(run, data, lineage, given.pop("event", ONE), given.pop("budget", 2.0), DELTA, **given)


def _acts(log: Any) -> list[str]:
    return [json.loads(entry)["act"] for entry in log.entries]


def test_a_spending_is_reserved_counted_ahead_and_committed_and_the_log_has_each_act(ledger: Ledger, log: Any) -> None:
    spending = _claim(ledger, about={"sigma": 1.5})
    assert ledger.charged("d") == ONE  # whole, while nobody knows how it ends
    ledger.ahead(spending, a.gaussian(9.0))
    assert ledger.charged("d") == ONE
    ledger.commit(spending, a.gaussian(8.0))
    (kept,) = ledger.of_run("r")
    assert (kept.state, kept.event, kept.about) == ("committed", a.gaussian(8.0), {"sigma": 1.5})
    assert _acts(log) == ["ledger.reserve", "ledger.ahead", "ledger.commit"]
    last = json.loads(log.entries[-1])["detail"]
    assert last["head"] == ledger.head()
    assert b'"d"' not in b"".join(log.entries)  # the log names data sets by a keyed digest


def test_a_training_that_was_given_up_is_charged_with_what_was_counted_ahead(ledger: Ledger) -> None:
    spending = _claim(ledger)
    ledger.ahead(spending, a.gaussian(9.0))
    assert ledger.forfeit(spending).event == a.gaussian(9.0)
    assert ledger.charged("d") == a.gaussian(9.0)
    with pytest.raises(Conflict, match="settled"):
        ledger.commit(spending, a.NOTHING)
    with pytest.raises(NotFound):
        ledger.find("nobody")


def test_what_is_over_the_budget_is_refused_and_leaves_no_trace(ledger: Ledger, log: Any) -> None:
    for _ in range(3):
        ledger.commit(_claim(ledger), ONE)  # three of epsilon 1 compose to about 1.8
    before, entries = ledger.head(), len(log.entries)
    with pytest.raises(CheckFailed, match=r"to epsilon 2\.\d+; 1\.\d+ of 2 are spent"):
        _claim(ledger)
    assert (ledger.head(), len(log.entries)) == (before, entries)
    _claim(ledger, data="another")


def test_parents_are_charged_and_checked_for_what_was_made_from_them(ledger: Ledger) -> None:
    for child in ("half", "other half", "both"):
        ledger.commit(_claim(ledger, data=child, lineage=("d",)), ONE)
    with pytest.raises(CheckFailed, match="d: "):
        _claim(ledger)
    with pytest.raises(CheckFailed, match="d: "):
        _claim(ledger, data="version 2", lineage=("d",))
    assert a.total(ledger.charged("half"), DELTA) < 1.1
    assert a.total(ledger.charged("d"), DELTA) > 1.7


def _table(start: int, rows: int, extra: int = 0) -> pa.Table:
    values = np.arange(start, start + rows)
    columns = {"a": values, "b": values * 7 + 1}
    return pa.table(dict(sorted(columns.items(), reverse=bool(extra))))


def test_data_sets_that_share_rows_are_charged_together_though_nobody_declared_it(ledger: Ledger) -> None:
    key = b"k" * 32
    assert ledger.know("d", row_hashes(_table(0, 5000), key)) == ()
    assert ledger.know("strangers", row_hashes(_table(9000, 5000), key)) == ()
    assert ledger.know("subset", row_hashes(_table(4900, 100, extra=1), key)) == ("d",)  # its columns in another order
    assert ledger.know("subset", row_hashes(_table(0, 1), key)) == ("d",)  # known already
    for _ in range(3):
        ledger.commit(_claim(ledger, data="subset"), ONE)
    with pytest.raises(CheckFailed, match="of 2 are spent"):
        _claim(ledger, data="d")
    _claim(ledger, data="strangers")


def test_hashes_of_rows_are_keyed() -> None:
    table = _table(0, 50)
    assert not set(row_hashes(table, b"a" * 32)) & set(row_hashes(table, b"b" * 32))
    assert len(row_hashes(pa.concat_tables([table, table]), b"a" * 32)) == 50


# broken on purpose


def _copy_of(url: str, tmp_path: Path) -> Callable[[], None]:
    """Remember the ledger's tables; what is returned brings them back."""
    engine = create_engine(url)
    names = ("privacy_ledger", "privacy_ledger_rows")
    with engine.begin() as connection:
        for name in names:
            connection.execute(text(f"CREATE TABLE old_{name} AS SELECT * FROM {name}"))

    def back() -> None:
        with engine.begin() as connection:
            for name in names:
                connection.execute(text(f"DELETE FROM {name}"))
                connection.execute(text(f"INSERT INTO {name} SELECT * FROM old_{name}"))
        engine.dispose()

    return back


@pytest.mark.parametrize("act", ["reserve", "ahead", "commit", "forfeit"])
def test_an_older_ledger_brought_back_is_found_out_by_the_log(
    act: str, ledger: Ledger, ledger_url: str, tmp_path: Path
) -> None:
    ledger.commit(_claim(ledger), ONE)
    spending = None if act == "reserve" else _claim(ledger, budget=9)
    if act == "commit" and spending:
        ledger.ahead(spending, ONE)
    back = _copy_of(ledger_url, tmp_path)
    if spending is None:
        _claim(ledger, budget=9)
    elif act == "ahead":
        ledger.ahead(spending, ONE)
    elif act == "commit":
        ledger.commit(spending, ONE)
    else:
        ledger.forfeit(spending)
    back()
    for look in (ledger.spendings, lambda: _claim(ledger, budget=9)):
        with pytest.raises(IntegrityError, match="brought back"):
            look()


def test_a_ledger_deleted_and_begun_anew_is_found_out(open_ledger: Open, ledger_url: str) -> None:
    ledger = open_ledger(ledger_url)
    _claim(ledger)
    engine = create_engine(ledger_url)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE privacy_ledger"))
    engine.dispose()
    anew = open_ledger(ledger_url)
    with pytest.raises(IntegrityError, match="row 1"):
        _claim(anew)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM privacy_ledger WHERE seq = 2",
        "UPDATE privacy_ledger SET body = replace(body, '\"commit\"', '\"forfeit\"') WHERE seq = 2",
        "UPDATE privacy_ledger SET hash = 'sha256:0' WHERE seq = 1",
    ],
)
def test_a_row_that_was_changed_or_taken_out_is_found_out(sql: str, ledger: Ledger, ledger_url: str) -> None:
    for _ in range(2):
        ledger.commit(_claim(ledger), ONE)
    engine = create_engine(ledger_url)
    with engine.begin() as connection:
        connection.execute(text(sql))
    engine.dispose()
    with pytest.raises(IntegrityError, match="changed"):
        _claim(ledger)


def test_remembered_rows_that_were_changed_are_found_out(ledger: Ledger, ledger_url: str) -> None:
    ledger.know("d", row_hashes(_table(0, 500), b"k" * 32))
    engine = create_engine(ledger_url)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM privacy_ledger_rows"))
    engine.dispose()
    with pytest.raises(IntegrityError, match="rows"):
        ledger.know("e", row_hashes(_table(0, 500), b"k" * 32))


def test_without_the_log_nothing_is_reserved_and_what_the_ledger_kept_is_charged(ledger: Ledger, log: Any) -> None:
    def away(entry: bytes) -> int:
        raise Unavailable("the log is away")

    append, log.append = log.append, away
    with pytest.raises(Unavailable):
        _claim(ledger)
    log.append = append
    assert [s.event for s in ledger.spendings()] == [ONE]


# many at once, and none left


def test_trainings_at_once_cannot_overspend(open_ledger: Open, ledger_url: str) -> None:
    """Three of epsilon 1 fit into 2: of eight that ask at once, each on a connection of its own, three get it."""
    ledgers = [open_ledger(ledger_url) for _ in range(8)]
    gate, got = threading.Barrier(8), []

    def ask(ledger: Ledger) -> None:
        gate.wait()
        try:
            got.append(_claim(ledger, run=str(id(ledger))).id)
        except CheckFailed:
            got.append("")

    threads = [threading.Thread(target=ask, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(bool, got)) == [False] * 5 + [True] * 3
    assert a.total(ledgers[0].charged("d"), DELTA) <= 2.0


_DIES = """
import sys, os, signal, pickle
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import MemoryLog
from genward_policies.privacy import accounting as a
from genward_policies.privacy.ledger import Ledger
log = MemoryLog()
ledger = Ledger(sys.argv[1], lambda: log, str)
spending = ledger.reserve("r", "d", (), a.gaussian(2.0), 9.0, 1e-5)
ledger.ahead(spending, a.gaussian(7.0))
Path(sys.argv[3]).write_bytes(b"\\n".join(log.entries))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_training_left_open_is_charged_by_its_count(
    open_ledger: Open, ledger_url: str, log: Any, tmp_path: Path
) -> None:
    words = [ledger_url, str(Path(__file__).parent), str(tmp_path / "log")]
    done = subprocess.run([sys.executable, "-c", _DIES, *words], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    log.entries += (tmp_path / "log").read_bytes().split(b"\n")
    ledger = open_ledger(ledger_url)
    assert ledger.charged("d") == a.gaussian(2.0)
    _claim(ledger, run="next")
    dead, alive = ledger.spendings()
    assert (dead.state, dead.event) == ("forfeited", a.gaussian(7.0))
    assert alive.state == "reserved"


def test_the_ledger_is_saved_with_the_registry(open_ledger: Open, tmp_path: Path, log: Any) -> None:
    """A copy of the database is the ledger: the tables lie beside the registry's."""
    from genward.registry import Registry

    url = f"sqlite:///{tmp_path}/registry.db"
    Registry(url, b"p" * 32).close()
    ledger = open_ledger(url)
    ledger.commit(_claim(ledger), ONE)
    ledger.close()
    shutil.copy(tmp_path / "registry.db", tmp_path / "copy.db")
    Registry(f"sqlite:///{tmp_path}/copy.db", b"p" * 32).close()
    assert open_ledger(f"sqlite:///{tmp_path}/copy.db").charged("d") == ONE
