"""A candidate: trained, not released. One folder that says how it came to be and can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genward.errors import IntegrityError, NotFound

if TYPE_CHECKING:
    from torch import nn

    from genward.data.codec import TableCodec
    from genward.data.dataset import Dataset
    from genward.family import Family
    from genward.plugins import Plugins


NETWORK = "network.safetensors"  # the last file a training writes that a release needs


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training, as JSON: written before the first step, read by `resume` and `release`."""

    id: str
    family: str
    dataset: str  # digest
    config: Mapping[str, Any] = field(default_factory=dict)
    conditions: tuple[str, ...] = ()
    seed: int = 0
    held_out: float = 0.2
    target: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    policy: str = ""
    created: str = ""
    protected: bool = False  # trained under a policy that owns every look at the data

    def split(self, dataset: Dataset) -> tuple[Any, Any]:
        """(train, test) rows. Under protection each row goes by itself: were the cut drawn over all of them, one row
        more would move many others across it, and noise that hides one row would not hide that."""
        return (dataset.split_by_row if self.protected else dataset.split)(self.seed, self.held_out)


@dataclass(frozen=True)
class Candidate:
    """A recipe, its folder, and what training left there."""

    recipe: Recipe
    folder: Path
    family: Family
    config: Any
    codec: TableCodec
    train: Any = None  # pyarrow tables, there while a release measures: rows trained on,
    test: Any = None  # rows held out,
    synthetic: Any = None  # rows the exported graph made with a public key,
    exported: Any = None  # that graph (genward.export.Exported), as it will be sealed,
    table: Any = None  # the release's slots, cells and block (genward.table.Table),
    parent: str = ""  # the digest of the release that this one is a cheaper form of,
    sealed: Mapping[str, bytes] = field(default_factory=dict)  # and files that policies seal beside it

    @property
    def id(self) -> str:
        return self.recipe.id

    @property
    def trained(self) -> bool:
        """Whether training has finished."""
        return (self.folder / NETWORK).is_file()

    def network(self) -> nn.Module:
        """The trained network in eval mode; NotFound when training has not finished."""
        from genward.train import load_network

        return load_network(self.family, self.config, self.codec.spec, self.folder)

    def history(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads((self.folder / "losses.json").read_bytes())
        return found

    @classmethod
    def create(cls, folder: Path, recipe: Recipe, plugins: Plugins, codec: TableCodec) -> Candidate:
        """Write a new candidate's folder."""
        folder.mkdir(parents=True)
        _write(folder / "codec.json", codec.to_json())
        _write(folder / "recipe.json", json.dumps(asdict(recipe), indent=2, sort_keys=True).encode())
        return cls.open(folder, plugins)

    @classmethod
    def open(cls, folder: Path, plugins: Plugins) -> Candidate:
        """Read a candidate back; NotFound if there is none, IntegrityError if it cannot be read."""
        from genward.data.codec import TableCodec

        if not (folder / "recipe.json").is_file():
            raise NotFound(f"no candidate {folder.name!r}", remedy="`genward model candidates` lists them")
        try:
            data = json.loads((folder / "recipe.json").read_bytes())
            recipe = Recipe(**data | {"conditions": tuple(data["conditions"])})
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(f"the recipe cannot be read: {error}", where=str(folder)) from None
        family = plugins.family(recipe.family)()
        codec = TableCodec.from_json((folder / "codec.json").read_bytes())
        return cls(recipe, folder, family, family.Config(**recipe.config), codec)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
