"""Plugins load by allow-list, duplicates and unknown hooks are refused, broken ones are named."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from genward.errors import NotFound, PluginError
from genward.family import Family
from genward.hookspecs import hookimpl
from genward.plugins import Plugins


def _module(name: str, **functions: object) -> types.ModuleType:
    module = types.ModuleType(name)
    for key, function in functions.items():
        setattr(module, key, function)
    return module


class _One(Family):
    name = "one"

    def build(self, spec, config):
        raise AssertionError

    def phases(self, network, config):
        return []

    def graphs(self, network, config):
        return {}


def _announces(*classes: type) -> types.ModuleType:
    @hookimpl
    def genward_families():
        return list(classes)

    return _module("stranger", genward_families=genward_families)


def _distribution(folder: Path, name: str, body: str) -> None:
    """A real installed distribution, as importlib.metadata sees it."""
    package = name.replace("-", "_")
    (folder / f"{package}.py").write_text(body)
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[genward]\n{package} = {package}\n")


def test_built_in_families_and_policies_come_through_entry_points() -> None:
    plugins = Plugins.load(["genward"])
    assert {"vae", "diffusion"} <= set(plugins.families)
    assert {"access", "quota"} <= set(plugins.policies)
    assert plugins.owners["families/vae"].distribution == "genward"
    assert plugins.broken == []


def test_what_is_not_allowed_is_listed_as_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _distribution(tmp_path, "acme-one", "raise SystemExit('a skipped plugin must not run')")
    monkeypatch.syspath_prepend(tmp_path)
    plugins = Plugins.load(["genward"])
    info = next(info for info in plugins.infos if info.distribution == "acme-one")
    assert (info.status, info.version) == ("skipped", "1.2")
    assert "allow-list" in info.reason


def test_a_broken_plugin_is_named_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _distribution(tmp_path, "acme-broken", "import no_such_module_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    plugins = Plugins.load(["genward", "acme-broken"])
    (broken,) = plugins.broken
    assert broken.distribution == "acme-broken"
    assert "no_such_module_at_all" in broken.reason
    assert "Traceback" in broken.trace
    with pytest.raises(NotFound, match="acme-broken"):
        plugins.family("nothing")


def test_an_unknown_hook_name_makes_a_plugin_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "from genward.hookspecs import hookimpl\n@hookimpl\ndef genward_familys():\n    return []\n"
    _distribution(tmp_path, "acme-misspelt", body)
    monkeypatch.syspath_prepend(tmp_path)
    (broken,) = Plugins.load(["acme-misspelt"]).broken
    assert "genward_familys" in broken.reason


def test_an_allowed_distribution_that_is_not_installed_is_an_error() -> None:
    with pytest.raises(PluginError, match="no-such-plugin"):
        Plugins.load(["genward", "no-such-plugin"])


def test_two_plugins_of_one_name_are_refused() -> None:
    with pytest.raises(PluginError, match="one"):
        Plugins.of(_announces(_One), _announces(_One))


def test_a_class_without_a_name_is_refused() -> None:
    nameless = type("Nameless", (_One,), {"name": ""})
    with pytest.raises(PluginError, match="name"):
        Plugins.of(_announces(nameless))


def test_loading_twice_gives_two_separate_sets() -> None:
    assert Plugins.load(["genward"]) is not Plugins.load(["genward"])
    assert "genward_one" not in sys.modules
