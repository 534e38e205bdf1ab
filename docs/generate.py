"""Write the generated parts of the pages in this folder: `python docs/generate.py`.

A page is Markdown. What stands between `<!-- generated: KEY -->` and `<!-- end -->` is made here
from the program itself: its options, the recipe's fields with their docstrings, the registries.
The rest of a page is written by hand and kept. A subcommand or protocol without a page gets one.
Everything is found by listing. `--check` writes nothing and ends with exit status 1 where a page
is not what the program says now; a test does the same.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel

ROOT = Path(__file__).parent
BLOCK = re.compile(r"(<!-- generated: (?P<key>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
PROGRAM = "mmbench"


# --------------------------------------------------------------------------------------------
# Markdown


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(cell(one) for one in line) + " |\n" for line in lines)


def cell(value: object) -> str:
    """A value inside a table: one line, with its bars escaped."""
    return " ".join(str(value).split()).replace("|", "\\|")


def code(value: object) -> str:
    """A value as code; nothing for nothing."""
    return f"`{value}`" if str(value) else ""


def shown(value: object) -> str:
    """A default as a recipe writes it."""
    if value is None:
        return "`null`"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (list, tuple)):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if value != {} else "`{}`"


# --------------------------------------------------------------------------------------------
# Subcommands


def commands() -> dict[str, click.Command]:
    """Every subcommand, found by listing."""
    from mmbench.cli.main import cli

    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def command_part(command: click.Command) -> str:
    """Usage, description, examples and options of a subcommand."""
    from mmbench.cli.main import cli

    # Below the program's own context, whose settings (-h beside --help) a subcommand takes over.
    above = click.Context(cli, info_name=PROGRAM, **cli.context_settings)
    context = click.Context(command, parent=above, info_name=command.name, terminal_width=80)
    usage = " ".join([f"{PROGRAM} {command.name}", *command.collect_usage_pieces(context)])
    parts = [f"```\n{usage}\n```\n", *_help_parts(inspect.cleandoc(command.help or ""))]
    rows = []
    for param in command.get_params(context):
        if isinstance(param, click.Argument) or getattr(param, "hidden", False):
            continue
        names, text = param.get_help_record(context) or ("", "")
        found = re.match(r"(.*?)\s*\[((?:env var|default|required|x>=|x<=|\d).*)\]$", text)
        about, extra = (found[1], found[2]) if found else (text, "")
        rows.append([code(names), about, extra.replace("] [", "; ")])
    parts.append(table(["option", "what it does", "default, bounds"], rows))
    return "\n".join(parts)


def _help_parts(text: str) -> Iterator[str]:
    r"""Paragraphs of a docstring; what click keeps as it is (after \b) becomes code."""
    for paragraph in re.split(r"\n\s*\n", text.split("\f")[0]):
        if not paragraph.startswith("\b"):
            yield " ".join(paragraph.split()) + "\n"
            continue
        lines = paragraph.strip("\b\n").split("\n")
        if lines[0].endswith(":") and not lines[0].startswith(" "):
            yield lines.pop(0) + "\n"
        yield "```sh\n" + inspect.cleandoc("\n" + "\n".join(lines)).rstrip() + "\n```\n"


# --------------------------------------------------------------------------------------------
# Settings


def fields(model: type[BaseModel]) -> str:
    """The keys of a part of a recipe: type, default, and what the source says of them."""
    about = documentation(model)
    rows = []
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else shown(field.get_default())
        bounds = [item for item in field.metadata if not callable(item)]
        kind = kind_of(field.annotation, bounds)
        rows.append([f"`{name}`", kind, default, about.get(name, "")])
    return table(["key", "value", "default", "meaning"], rows) if rows else "No settings.\n"


def documentation(model: type[BaseModel]) -> dict[str, str]:
    """What is said of each field: the string below it, or the comment beside it."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        source = inspect.cleandoc("\n" + inspect.getsource(base))
        lines = source.splitlines()
        body = getattr(ast.parse(source).body[0], "body", [])
        for node, after in zip(body, [*body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            name = node.target.id
            text = getattr(getattr(after, "value", None), "value", None)
            comment = re.search(r"#\s*(?!noqa|type:)(.+)$", lines[(node.end_lineno or 1) - 1])
            if isinstance(after, ast.Expr) and isinstance(text, str):
                found[name] = text
            elif comment:
                found[name] = comment[1]
    return found


def kind_of(annotation: Any, bounds: Sequence[Any] = ()) -> str:
    """A type as one says it: "whole number, at least 1"."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [item for part in parts[1:] for item in getattr(part, "metadata", [part])]
        return kind_of(parts[0], [*inner, *bounds])
    if origin is Literal:
        return ", ".join(code(part) for part in parts)
    if origin is Union or str(origin) == "<class 'types.UnionType'>":
        given = [part for part in parts if part is not type(None)]
        told = list(dict.fromkeys(kind_of(part, bounds) for part in given))
        if told == ["whole number", "number"]:
            told = ["number"]
        return " or ".join([*told, *(["`null`"] if len(given) < len(parts) else [])])
    if origin in (list, tuple):
        return f"list of {kind_of(parts[0])}" if parts else "list"
    if origin in (dict, Mapping):
        return f"mapping to {kind_of(parts[1])}" if parts else "mapping"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return ", ".join([names.get(annotation, "any value"), *_bounds(bounds)])


def _bounds(bounds: Sequence[Any]) -> Iterator[str]:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    for bound in bounds:
        for name, word in words.items():
            limit = getattr(bound, name, None)
            if limit is not None:
                text = "2^63" if limit == 2**63 else f"{limit:g}"
                yield f"{word} {text}"


def sections() -> dict[str, type[BaseModel]]:
    """The parts of a recipe, the whole of it first, found by listing."""
    from mmbench import recipe_keys
    from mmbench.search_space import Dimension

    classes = [
        value
        for value in vars(recipe_keys).values()
        if inspect.isclass(value) and issubclass(value, recipe_keys.Section) and value.model_fields
    ]
    named = {one.__name__: one for one in classes}
    whole = named.pop(recipe_keys.Shape.__name__)
    return {"The recipe": whole, **named, "Dimension": Dimension}


def recipe_part() -> str:
    """Every key of a recipe."""
    parts = []
    for name, model in sections().items():
        about = "" if name == "The recipe" else inspect.getdoc(model) or ""
        parts.append(f"## {name}\n\n{about}{chr(10) * 2 if about else ''}{fields(model)}")
    return "\n".join(parts)


# --------------------------------------------------------------------------------------------
# Protocols


def protocols() -> dict[str, str]:
    """Pages of protocols: presets of recipes, and definitions of cold start."""
    from mmbench.cli.cold_start import cold_start
    from mmbench.recipe_keys import PROTOCOLS

    definition = next(param for param in cold_start.params if param.name == "definition")
    cold = [f"cold-start-{name}" for name in definition.type.choices]  # type: ignore[attr-defined]
    return {**dict.fromkeys(PROTOCOLS, "preset"), **dict.fromkeys(cold, "cold")}


def protocol_part(name: str) -> str:
    """What a preset fixes, beside the default."""
    from mmbench.recipe_keys import PROTOCOLS, Protocol

    preset = PROTOCOLS[name]
    values = Protocol.model_validate(name)
    about = documentation(Protocol)
    rows = []
    for key, field in Protocol.model_fields.items():
        if key != "name":
            default = field.get_default()
            other = f" (else {shown(default)})" if key in preset else ""
            rows.append([f"`{key}`", shown(getattr(values, key)) + other, about.get(key, "")])
    return table(["key of `protocol:`", "value", "meaning"], rows)


def cold_part(name: str) -> str:
    """What a definition of cold start is, as the study says it."""
    from mmbench.studies import cold_start as study

    definition = name.removeprefix("cold-start-")
    metrics = ", ".join(f"`{metric}`" for metric in study.METRICS[definition])
    return (
        f"`mmbench cold-start --definition {definition}`. Metrics if none are named: {metrics}.\n"
    )


# --------------------------------------------------------------------------------------------
# Registries


def models_part() -> str:
    """Every model with its settings."""
    from mmbench.models.base import MODELS
    from mmbench.recipe_files import shipped_recipes

    recipes = shipped_recipes()
    rows, parts = [], []
    for name in MODELS.names():
        entry = MODELS.get(name)
        made, config = entry.obj, entry.info["config"]
        shipped = [one.split("/")[0] for one in recipes if one.endswith(f"/{name}")]
        reads = "any" if len(made.modalities) >= 4 else ", ".join(sorted(made.modalities))
        row = [f"[{name}](#{name})", made.family, made.integration, reads or "none"]
        rows.append([*row, ", ".join(shipped)])
        parts.append(
            f"### {name}\n\n{MODELS.summary(name)} *{' '.join(entry.info['citation'].split())}* "
            f"`{inspect.getmodule(made).__name__}`\n\n{fields(config)}"  # type: ignore[union-attr]
        )
    heads = ["model", "family", "integration", "modalities", "recipes for"]
    return table(heads, rows) + "\n## Settings\n\n" + "\n".join(parts)


def encoders_part() -> str:
    """Every encoder."""
    from mmbench.encoders.base import ENCODERS

    rows = []
    for name in ENCODERS.names():
        made = ENCODERS.get(name).obj
        hub = getattr(made, "hub", None)
        weights = "built in" if made.builtin else code(getattr(hub, "id", ""))
        licence = getattr(hub, "licence", "") or ("" if made.builtin else "see its page")
        modalities = ", ".join(made.modalities)
        rows.append([f"`{name}`", modalities, ENCODERS.summary(name), weights, licence])
    return table(["encoder", "makes", "what it is", "weights", "their licence"], rows)


def metrics_part() -> str:
    """Every metric."""
    from mmbench.metrics.base import METRICS

    directions = {True: "more", False: "less", None: "neither"}
    rows = []
    for name in METRICS.names():
        info = METRICS.get(name).info
        per = "each user" if info["per_user"] else "the system"
        better = directions[info["higher_is_better"]]
        rows.append([f"`{name}@K`", METRICS.summary(name), per, better])
    return table(["metric", "what it is", "one value for", "better is"], rows)


def datasets_part() -> str:
    """Every dataset with a card, and every layout that is read."""
    from mmbench.data.finding import sources
    from mmbench.data.source import DATASETS

    layouts, cards = [], []
    for name, source in sources().items():
        if source.layout:
            layouts.append([f"`{name}`", source.title or DATASETS.summary(name), source.expects])
        for card in source.cards():
            aliases = ", ".join(f"`{alias}`" for alias in card.aliases)
            how = "download" if card.files else "by hand"
            extra = ", ".join(card.parts)
            sizes = "; ".join(
                f"{one.users:,} / {one.items:,} / {one.interactions:,} ({one.where})"
                for one in card.published
            )
            cards.append([f"`{card.name}`", aliases, card.title, how, extra, sizes, card.terms])
        if not source.needs_source:
            cards.append([f"`{name}`", "", DATASETS.summary(name), "comes along", "", "", ""])
    heads = ["name", "also", "what it is", "files", "parts (`--with`)"]
    heads += ["published users / items / interactions", "terms"]
    return (
        table(heads, sorted(cards))
        + "\n## Layouts of `--source`\n\n"
        + table(["`--format`", "what it is", "what a folder holds"], layouts)
    )


def index_part() -> str:
    """All pages."""
    rows = []
    for path in sorted(ROOT.rglob("*.md")):
        where = path.relative_to(ROOT).as_posix()
        if where != "README.md":
            title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
            rows.append([f"[{where}]({where})", title])
    return table(["page", "what it holds"], rows)


# --------------------------------------------------------------------------------------------


def parts() -> dict[str, Callable[[], str]]:
    """What is generated, by key."""
    found: dict[str, Callable[[], str]] = {
        "recipe": recipe_part,
        "models": models_part,
        "encoders": encoders_part,
        "metrics": metrics_part,
        "datasets": datasets_part,
        "index": index_part,
    }
    for name, command in commands().items():
        found[f"command {name}"] = lambda command=command: command_part(command)  # type: ignore[misc]
    for name, kind in protocols().items():
        make = protocol_part if kind == "preset" else cold_part
        found[f"protocol {name}"] = lambda name=name, make=make: make(name)  # type: ignore[misc]
    return found


def new_pages() -> dict[Path, str]:
    """Pages that every subcommand and protocol has, as they begin."""
    pages = {}
    for name in commands():
        title = f"# `{PROGRAM} {name}`\n\n"
        pages[ROOT / "commands" / f"{name}.md"] = title + _empty(f"command {name}")
    for name in protocols():
        title = f"# Protocol: {name}\n\n"
        pages[ROOT / "protocols" / f"{name}.md"] = title + _empty(f"protocol {name}")
    return pages


def _empty(key: str) -> str:
    return f"<!-- generated: {key} -->\n<!-- end -->\n"


def pages() -> dict[Path, str]:
    """Every page as it should be.

    Raises:
        KeyError: a page asks for a part that is not made, for example of a command that is gone.
    """
    known = parts()
    made: dict[str, str] = {}

    def fill(match: re.Match[str]) -> str:
        key = match["key"]
        made[key] = made.get(key) or known[key]()
        return f"{match[1]}\n{made[key].rstrip()}\n\n{match[3]}"

    begun = {path: text for path, text in new_pages().items() if not path.exists()}
    there = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.md"))}
    return {path: BLOCK.sub(fill, text) for path, text in {**begun, **there}.items()}


def outdated() -> dict[Path, str]:
    """The pages that are not what they should be, with what they should hold."""
    return {
        path: text
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def main() -> None:
    """Write what has changed, or say what would."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1")
    check = parser.parse_args().check
    changed: list[Path] = []
    for _ in range(2):  # a page that is new is in the index the second time
        for path, text in outdated().items():
            changed.append(path)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    for path in dict.fromkeys(changed):
        sys.stdout.write(f"{'outdated' if check else 'written'}: {path.relative_to(ROOT)}\n")
    sys.exit(1 if check and changed else 0)


if __name__ == "__main__":
    main()
