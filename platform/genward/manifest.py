"""What a bundle's `manifest.json` says, as frozen pydantic models. Unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from genward.errors import IntegrityError

FORMAT: Literal["genward.bundle/1"] = "genward.bundle/1"
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
HexDigest = Annotated[str, Field(pattern=r"^(sha256:)?[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _OpenPart(BaseModel):
    """A part whose further keys belong to its owner (export, engine, runtime fingerprint)."""

    model_config = ConfigDict(frozen=True, extra="allow")


class FilePart(_Part):
    """One payload file: bytes and hex SHA-256."""

    size: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FamilyPart(_Part):
    """Which plugin made the network, with what settings."""

    name: str
    config: Mapping[str, Any]
    distribution: str
    version: str


class DatasetPart(_Part):
    """The data it was trained on; `rows` is rounded, since an exact count can tell whether one record was in."""

    digest: HexDigest
    rows: Count
    name: str = ""


class GraphPart(_OpenPart):
    """A graph's file and what the engine needs to feed it (`noise`, `condition`, `outputs`, `loops`, `gate`, ...)."""

    file: str


class TablePart(_Part):
    """The table a release is: S slots (None: no pool), k candidates, canonical block, cells, later segments."""

    slots: Count | None
    candidates: Annotated[int, Field(ge=1, strict=True)]
    block: Annotated[int, Field(ge=1, strict=True)]
    cells: Sequence[Any] = ()
    segments: Sequence[Any] = ()


class GoldenPart(_OpenPart):
    """A canonical block under the public test key, checked at every load; the engine adds sample rows."""

    start: Count
    sha256: HexDigest


class RuntimePart(_OpenPart):
    """Where the golden blocks were made."""

    onnxruntime: str
    opset: Count


class Manifest(_Part):
    """The whole manifest; `files` lists every payload file of the bundle but the manifest and its signature."""

    format: Literal["genward.bundle/1"]
    name: Annotated[str, Field(min_length=1)]
    family: FamilyPart
    codec: str
    dataset: DatasetPart
    graphs: Mapping[str, GraphPart]
    table: TablePart
    golden: Sequence[GoldenPart]
    runtime: RuntimePart
    policy: str
    created: AwareDatetime
    parent: Digest | Literal[""] = ""
    files: Mapping[str, FilePart]

    @model_validator(mode="after")
    def _named_files_are_listed(self) -> Self:
        for name in (self.codec, *(graph.file for graph in self.graphs.values())):
            if name not in self.files:
                raise ValueError(f"{name!r} is named but not among the files")
        return self


def validate_manifest(manifest: Mapping[str, Any]) -> Manifest:
    """Check a manifest's keys and values; IntegrityError names the first that is wrong."""
    try:
        return Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        where = "/".join(("manifest.json", *map(str, first["loc"])))
        raise IntegrityError(str(first["msg"]), where=where, remedy="the bundle must be sealed again") from None
