"""Recipe files: where shipped ones lie, reading them, and setting single keys of what was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import mmbench
from mmbench.errors import ConfigError

SHIPPED = next(
    folder
    for folder in (
        Path(mmbench.__file__).parent / "recipes",
        Path(mmbench.__file__).parents[1] / "recipes",
    )
    if folder.is_dir()
)


def set_key(raw: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a nested mapping with one dotted key set.

    Raises:
        ConfigError: the key leads through a value that holds no keys.
    """
    head, _, rest = key.partition(".")
    copy = dict(raw)
    if rest:
        inner = copy.get(head, {})
        # `protocol: mmrec` and `schedule: cosine` are short for a mapping with that name.
        if isinstance(inner, str):
            inner = {"name": inner}
        if not isinstance(inner, Mapping):
            raise ConfigError(f"{key} cannot be set: {head} is not a mapping")
        value = set_key(inner, rest, value)
    copy[head] = value
    return copy


def apply_settings(raw: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Apply `--set key=value` options; values are read as YAML.

    Raises:
        ConfigError: an option is not KEY=VALUE.
    """
    result = dict(raw)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"--set {setting!r} is not KEY=VALUE; for example --set model.embedding_size=32"
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {key}: {text!r} is not a YAML value") from None
        result = set_key(result, key.strip(), value)
    return result


def section_of(setting: str) -> str:
    """The section that a `--set` option changes: "model" of "model.embedding_size=32"."""
    return setting.partition("=")[0].partition(".")[0].strip()


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key written twice, where YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"line {line}: {key!r} is written twice")
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file to plain values, unchecked.

    Raises:
        ConfigError: it is missing, no YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"recipe {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"recipe {path} cannot be read: {problem}") from None
    try:
        raw = yaml.load(text, _UniqueKeyLoader)  # a SafeLoader
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}{where}: not YAML: {getattr(problem, 'problem', problem)}"
        ) from None
    except ConfigError as problem:
        raise ConfigError(f"{path} {problem}") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: a recipe is a mapping of keys; see the recipes folder for examples"
        )
    return raw


def shipped_recipes() -> list[str]:
    """Names `<dataset>/<model>` of the recipes that ship with the package."""
    return sorted(
        path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.yaml")
    )
