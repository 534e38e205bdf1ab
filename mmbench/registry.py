"""One generic registry: a name is a file.

An entry lives in a file of its own under one package and is marked with that registry's
decorator. Its name is the file name, with `-` for `_` (`slim_bpr.py` is "slim-bpr"). Looking
a name up imports that one file; listing names parses the files for the decorator and imports
nothing, so no list elsewhere can go stale and `--help` stays fast.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

from mmbench.errors import UnknownNameError

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered object and the facts its decorator stated."""

    name: str
    obj: T
    info: dict[str, Any] = field(default_factory=dict)


class Registry(Generic[T]):
    """The entries of one kind, found in the files of one package.

    Args:
        kind: what an entry is called in messages, for example "model".
        package: the dotted package whose files are searched.
        decorator: the function name that marks an entry in those files.
        listing: the command that lists the entries with what each is, for messages.
    """

    def __init__(self, kind: str, package: str, decorator: str, *, listing: str = "") -> None:
        self.kind, self.package, self.decorator = kind, package, decorator
        self.listing = listing
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, **info: Any) -> Callable[[T], T]:
        """Return a decorator that registers the object below it under `name`.

        Raises:
            ValueError: the name is taken, or is not the name of the file it stands in.
        """

        def wrap(obj: T) -> T:
            stem = str(getattr(obj, "__module__", "")).rpartition(".")[2]
            if stem and stem.replace("_", "-") != name:
                raise ValueError(
                    f"{self.kind} {name!r} is registered in {stem}.py, not in its own file"
                )
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = Entry(name, obj, info)
            return obj

        return wrap

    @cached_property
    def _root(self) -> Path:
        spec = find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"{self.package} is not a package")
        return Path(next(iter(spec.submodule_search_locations)))

    @cached_property
    def _files(self) -> dict[str, str]:
        found: dict[str, str] = {}
        root = self._root
        for path in sorted(root.rglob("*.py")):
            if f"@{self.decorator}(" in (text := path.read_text(encoding="utf-8")) and (
                self._decorates(ast.parse(text))
            ):
                inner = ".".join(path.relative_to(root).with_suffix("").parts)
                name = path.stem.replace("_", "-")
                if name in found:
                    raise ValueError(
                        f"{self.kind} {name!r} is in two files: {found[name]} and {inner}"
                    )
                found[name] = f"{self.package}.{inner}"
        return found

    def _decorates(self, tree: ast.Module) -> bool:
        return any(
            isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == self.decorator
            for node in tree.body
            if isinstance(node, (ast.ClassDef, ast.FunctionDef))
            for mark in node.decorator_list
        )

    def names(self) -> list[str]:
        """All names, sorted, without importing any entry."""
        return sorted({*self._files, *self._entries})

    def summary(self, name: str) -> str:
        """First line of the docstring of the file that holds `name`, without importing it."""
        inner = self._files[name][len(self.package) + 1 :].replace(".", "/")
        text = (self._root / f"{inner}.py").read_text(encoding="utf-8")
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]

    def get(self, name: str, *, hint: str = "", listing: str = "") -> Entry[T]:
        """The entry called `name`; `_` and `-` are the same.

        Args:
            name: the name, as a user writes it.
            hint: a sentence that ends the message where there is none.
            listing: the command that lists the entries, in place of the registry's own.

        Raises:
            UnknownNameError: there is none; the message offers the nearest.
        """
        key = name.replace("_", "-")
        if key not in self._entries and key in self._files:
            importlib.import_module(self._files[key])
        if key not in self._entries:
            known = self.names()
            raise UnknownNameError(
                self.kind, name, known, hint=hint, listing=listing or self.listing
            )
        return self._entries[key]
