"""`genward audit`: verify, read, prove and witness transparency logs."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from genward_audit import retention, witness
from genward_audit._console import AuditGroup, progress
from genward_audit.client import connect
from genward_audit.entries import parse, retain_entry
from genward_audit.errors import AuditError, NotFound, Unavailable, UsageError
from genward_audit.index import Index, Query
from genward_audit.keyfile import create_key, keys_of, load_key, succeed
from genward_audit.note import Signer
from genward_audit.policy import Policy
from genward_audit.reader import LogFolder, read_file
from genward_audit.retention import read_minimum
from genward_audit.tiles import TILE_WIDTH
from genward_audit.verify import MAX_AGE, Report, verify_folder, verify_receipt

app = typer.Typer(
    name="audit",
    cls=AuditGroup,
    help="Verify, read, prove and witness the transparency log.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

LogOption = Annotated[
    Path | None, typer.Option("--log", help="Log folder; else log/ of $GENWARD_STATE, else .genward/log.")
]
PolicyOption = Annotated[Path | None, typer.Option("--policy", help="Trust policy (C2SP tlog-policy).")]
VkeyOption = Annotated[list[str] | None, typer.Option("--vkey", help="Trust this log key and no witness.")]
KeyOption = Annotated[Path | None, typer.Option("--key", help="The log's private key; else keys/log.pem of the state.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
EventOption = Annotated[str, typer.Option(help="grant, settle, refuse, release or act.")]
Text = Annotated[str, typer.Option()]
_LINGER = 5.0  # seconds that a writer which had to be started stays
_COVER_SECONDS = 10.0


def _state() -> Path:
    return Path(os.environ.get("GENWARD_STATE", ".genward"))


def _folder(log: Path | None) -> LogFolder:
    return LogFolder(log or _state() / "log")


def _key_path(key: Path | None) -> Path:
    return key or _state() / "keys/log.pem"


def _trust(policy: Path | None, vkeys: list[str] | None, folder: LogFolder | None = None) -> Policy:
    """The policy file, the vkeys, or, on the log's own machine, its own key."""
    if policy:
        return Policy.parse(read_file(policy, 1 << 20))
    if vkeys:
        return Policy.of(*vkeys)
    own = _key_path(None)
    if folder is None or not own.is_file() or folder.path.resolve().parent != own.resolve().parent.parent:
        remedy = "give --policy FILE or --vkey; 'genward audit vkey' on the log's machine prints the key"
        raise UsageError("whom to trust is not said", remedy=remedy)
    return Policy.of(*(one.verifier.vkey for one in _signers(folder, None)))


def _word() -> bytes | None:
    return os.environ.get("GENWARD_PASSPHRASE", "").encode() or None


def _signers(folder: LogFolder, key: Path | None) -> list[Signer]:
    """The log's key, and the one it took over from while both sign."""
    origin = folder.head().origin
    return [Signer(origin, load_key(path, _word())) for path in keys_of(_key_path(key))]


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


@app.command()
def verify(
    folder: Annotated[Path | None, typer.Argument(help="Log folder, live or copied.")] = None,
    log: LogOption = None,
    policy: PolicyOption = None,
    vkey: VkeyOption = None,
    workers: Annotated[int, typer.Option(help="Processes that hash; 0 takes up to four.")] = 0,
    max_age: Annotated[float, typer.Option(help="Seconds after which the newest stated time is stale.")] = MAX_AGE,
    as_json: JsonOption = False,
) -> None:
    """Recompute a log offline: integrity, completeness, freshness. Exit 5 for integrity, 1 for the others."""
    source = _folder(folder or log)
    report = verify_folder(source.path, _trust(policy, vkey, source), progress(), workers=workers, max_age=max_age)
    _print_json(report.to_json()) if as_json else _print_report(report)
    raise typer.Exit(report.exit_code)


def _print_report(report: Report) -> None:
    print(f"{report.origin or 'unknown log'}: {report.size} entries, root {report.root or 'not believed'}")
    named = {"integrity": report.integrity, "completeness": report.completeness, "freshness": report.freshness}
    for name, verdict in named.items():
        print(f"{name:13}{verdict.state}")
        for line in (*verdict.failures, *verdict.notes):
            print(f"{'':13}{line}")


def _shown(index: int, entry: bytes) -> dict[str, Any]:
    """An entry for people and files: its fields under its index; a stranger's bytes in hexadecimal."""
    try:
        return {"index": index, **parse(entry)}
    except AuditError:
        return {"index": index, "bytes": entry.hex()}


def _line(index: int, entry: bytes) -> str:
    shown = _shown(index, entry)
    names = ("t", "event", "act", "status", "tenant", "actor", "model", "request")
    words = [str(shown[name]) for name in names if name in shown] or [shown.get("bytes", "")[:100]]
    return f"{index:>8}  " + "  ".join(words)


def _print_entries(entries: Iterable[tuple[int, bytes]], as_json: bool) -> None:
    for index, entry in entries:
        print(json.dumps(_shown(index, entry), ensure_ascii=False) if as_json else _line(index, entry))


@app.command()
def tail(
    log: LogOption = None,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="How many.")] = 10,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as checkpoints come.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The newest entries that a checkpoint covers."""
    folder = _folder(log)
    newest = folder.last(lines)
    _print_entries(newest, as_json)
    at = newest[-1][0] + 1 if newest else 0
    while follow:
        time.sleep(0.5)
        more = list(folder.entries(at, min(folder.head().size, at + 100 * TILE_WIDTH)))
        _print_entries(more, as_json)
        at += len(more)
        sys.stdout.flush()


@app.command()
def show(
    index: Annotated[int, typer.Argument(min=0, help="The entry's index.")],
    log: LogOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="The entry's bytes as they are.")] = False,
) -> None:
    """One entry."""
    entry = _folder(log).entry(index)
    if raw:
        sys.stdout.buffer.write(entry)
    else:
        _print_json(_shown(index, entry))


def _found(folder: LogFolder, query: Query) -> Iterator[tuple[int, bytes]]:
    """Entries that match, through the index beside the log (in memory where the folder cannot be written)."""
    head = folder.head()
    start = read_minimum(folder, head.origin) // TILE_WIDTH * TILE_WIDTH
    beside = folder.path.parent / "log-index.db"
    path: Path | str = beside if folder.path.name == "log" and os.access(folder.path.parent, os.W_OK) else ":memory:"
    with Index(path) as index:
        index.update(folder, start=min(start, head.size))
        for position in index.search(query):
            yield position, folder.entry(position, head.size)


@app.command()
def search(
    log: LogOption = None,
    since: Annotated[str, typer.Option(help="From this time on, for example 2026-11-22T10.")] = "",
    until: Annotated[str, typer.Option(help="Before this time.")] = "",
    tenant: Text = "",
    model: Text = "",
    event: EventOption = "",
    status: Text = "",
    request: Text = "",
    act: Text = "",
    actor: Text = "",
    limit: Annotated[int, typer.Option(min=1)] = 100,
    as_json: JsonOption = False,
) -> None:
    """Entries by time, tenant, model, event, status, request, act or actor; the newest first."""
    query = Query(since, until, tenant, model, event, status, request, act, actor, limit, newest_first=True)
    _print_entries(_found(_folder(log), query), as_json)


@app.command()
def export(
    target: Annotated[Path | None, typer.Argument(help="A .jsonl or .csv file; standard output without one.")] = None,
    log: LogOption = None,
    form: Annotated[str, typer.Option("--format", help="jsonl or csv; else by the file's name.")] = "",
    since: Text = "",
    until: Text = "",
    tenant: Text = "",
    model: Text = "",
    event: EventOption = "",
    status: Text = "",
) -> None:
    """Entries as JSONL or CSV, oldest first."""
    form = form or (target.suffix.lstrip(".") if target else "jsonl")
    if form not in _WRITERS:
        raise UsageError(f"the format {form!r} is not known", remedy="--format jsonl or csv")
    found = _found(_folder(log), Query(since, until, tenant, model, event, status))
    try:
        if target is None:
            _WRITERS[form](found, sys.stdout)
        else:
            with target.open("w", encoding="utf-8", newline="") as file:
                _WRITERS[form](found, file)
    except OSError as error:
        raise UsageError(f"cannot write: {error.strerror}", where=str(target)) from None


def _write_jsonl(entries: Iterable[tuple[int, bytes]], file: IO[str]) -> None:
    for index, entry in entries:
        file.write(json.dumps(_shown(index, entry), ensure_ascii=False) + "\n")


_COLUMNS = ("index", "t", "event", "act", "request", "tenant", "actor", "model", "policy", "status", "grant")
_NESTED = ("plan", "out", "detail", "reasons", "commit")


def _write_csv(entries: Iterable[tuple[int, bytes]], file: IO[str]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow((*_COLUMNS, *_NESTED))
    for index, entry in entries:
        shown = _shown(index, entry)
        nested = [json.dumps(shown[name], ensure_ascii=False) if name in shown else "" for name in _NESTED]
        writer.writerow([_cell(shown.get(name, "")) for name in _COLUMNS] + nested)


def _cell(value: Any) -> str:
    """A spreadsheet would run a text that begins like a formula (OWASP, CSV injection)."""
    text = str(value)
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


_WRITERS = {"jsonl": _write_jsonl, "csv": _write_csv}


@app.command()
def receipt(
    index: Annotated[int | None, typer.Argument(min=0, help="The entry to prove.")] = None,
    log: LogOption = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write NAME.tlog-proof here.")] = None,
    check: Annotated[Path | None, typer.Option("--check", help="Check this .tlog-proof instead.")] = None,
    entry: Annotated[Path | None, typer.Option("--entry", help="The entry's bytes, for --check.")] = None,
    policy: PolicyOption = None,
    vkey: VkeyOption = None,
) -> None:
    """Make an entry's receipt (.tlog-proof), or check one offline."""
    if check is not None:
        return _check_receipt(check, entry, _trust(policy, vkey))
    if index is None:
        raise UsageError("which entry?", remedy="genward audit receipt INDEX, or --check FILE --entry FILE")
    proof = _folder(log).proof(index)
    if proof is None:
        raise NotFound(f"no checkpoint covers entry {index} yet", remedy="try again in a second")
    if out is None:
        sys.stdout.buffer.write(proof)
    else:
        out.write_bytes(proof)


def _check_receipt(proof: Path, entry: Path | None, trust: Policy) -> None:
    if entry is None:
        raise UsageError("a receipt proves an entry", remedy="--entry FILE; 'genward audit show INDEX --raw' writes it")
    head = verify_receipt(read_file(proof, 1 << 20), read_file(entry, 1 << 16), trust).checkpoint
    print(f"the entry is in {head.origin} of {head.size} entries")


@app.command(name="witness")
def witness_command(
    policy: Annotated[Path, typer.Option(help="Its log lines name the logs to witness.")],
    name: Annotated[str, typer.Option(help="The witness's name, a URL without its scheme.")],
    state: Annotated[Path, typer.Option(help="Where it remembers; its own disk, not the log's.")] = Path("witness.db"),
    key: Annotated[Path, typer.Option(help="Made at the first start.")] = Path("witness.pem"),
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 7380,
) -> None:
    """Run a witness: cosign only checkpoints that continue what it has seen."""
    witness.run(state, key, name, policy, host, port)


@app.command(name="vkey")
def vkey_command(log: LogOption = None, key: KeyOption = None, name: Text = "") -> None:
    """Print the log's public key for a policy file."""
    print(Signer(name or _folder(log).head().origin, load_key(_key_path(key), _word())).verifier.vkey)


@app.command(name="rotate-key")
def rotate_key(
    new: Annotated[Path | None, typer.Option("--new", help="The new private key; made where none is named.")] = None,
    log: LogOption = None,
    key: KeyOption = None,
) -> None:
    """Put a new key in the log key's place; prints the policy line to hand out.

    From its next start the writer signs with both, and an entry says so; until the old key's file is deleted.
    """
    folder, path = _folder(log), _key_path(key)
    fresh = new or path.with_name(f"{path.stem}.new{path.suffix}")
    young = Signer(folder.head().origin, load_key(fresh, _word()) if fresh.exists() else create_key(fresh, _word()))
    old = succeed(path, fresh)
    retention.sign_again(folder, young)
    print(f"log {young.verifier.vkey}")
    print(f"restart the writer; both keys sign until you delete {old}", file=sys.stderr)


@app.command()
def retain(
    minimum: Annotated[int, typer.Option("--minimum", min=0, help="Entries below this index may go.")],
    log: LogOption = None,
    key: KeyOption = None,
) -> None:
    """Delete what lies below a minimum index: announce it in the log, sign it, then delete."""
    folder = _folder(log)
    retention.check_minimum(folder, minimum)
    signers = _signers(folder, key)
    if not retention.is_announced(folder, minimum):
        _announce(folder, _key_path(key), minimum)
    deleted = retention.prune(folder, minimum, *signers)
    print(f"{deleted} files deleted; entries from {minimum} on are kept")


def _announce(folder: LogFolder, key: Path, minimum: int) -> None:
    """Append the act through the log's writer, and wait until a checkpoint covers it."""
    run = folder.path.resolve().parent / "run"
    client = connect(folder.path.resolve(), run, key.resolve(), folder.head().origin, linger=_LINGER)
    index = client.append(retain_entry(minimum))
    client.close()
    until = time.monotonic() + _COVER_SECONDS
    while folder.head().size <= index:
        if time.monotonic() > until:
            raise Unavailable("no checkpoint covers the announcement yet", remedy="try again in a while")
        time.sleep(0.05)
