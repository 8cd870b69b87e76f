"""The pages that are generated from the code: the configuration's keys and the command line.

`python -m docs.tools.reference` writes them; a test compares them with the code.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm.cli import _parser
from ddpm.config import Config
from ddpm.files import write_text

OUT = Path(__file__).parents[1] / "reference"
MADE = "<!-- Made by python -m docs.tools.reference (make references): change the code, not this page. -->"


def pages() -> dict[str, str]:
    """The generated pages by file name."""
    return {"config.md": "\n".join(_config()) + "\n", "commands.md": "\n".join(_commands()) + "\n"}


def _config() -> Iterator[str]:
    yield "# Configuration keys"
    yield f"\n{MADE}\n"
    yield (
        "A configuration is a YAML file of five sections. `ddpm config FILE` shows every key with its value and where "
        "it came from. Any key can be changed when a command starts: `--set section.key=value`. A key that does not "
        "exist, a value that is not allowed, and a setting that would have no effect are refused, with what to do."
    )
    schema = Config.model_json_schema()
    for section, place in schema["properties"].items():
        found = schema["$defs"][(place.get("$ref") or place["allOf"][0]["$ref"]).rpartition("/")[2]]
        yield f"\n## {section}\n\n| key | values | default | |\n|---|---|---|---|"
        needed = found.get("required", [])
        for key, field in found["properties"].items():
            default = "needed" if key in needed else _value(field.get("default"))
            words = " ".join(field.get("description", "").split())
            yield f"| `{key}` | {_cell(_values(field))} | {default} | {_cell(words)} |"


def _values(field: dict[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "anyOf" in field:
        return " or ".join(_values(one) for one in field["anyOf"] if one.get("type") != "null")
    if "enum" in field:
        return ", ".join(_value(value) for value in field["enum"])
    if "const" in field:
        return _value(field["const"])
    kind = field["type"]
    if kind == "array":
        if "prefixItems" in field:
            return f"[{', '.join(_values(item) for item in field['prefixItems'])}]"
        return f"list of {_values(field['items'])}"
    low, above = field.get("minimum"), field.get("exclusiveMinimum")
    high, below = field.get("maximum"), field.get("exclusiveMaximum")
    parts = [{"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}[kind]]
    if kind == "integer" and above == 0:
        parts.append("from 1")
    else:
        parts += [f"above {above:g}"] if above is not None else [f"from {low:g}"] if low is not None else []
    if below is not None:
        parts.append(f"below {below:g}" if below < 1e9 else "below 2^63")
    parts += [f"to {high:g}"] if high is not None else []
    parts += [f"and a multiple of {field['multipleOf']}"] if "multipleOf" in field else []
    return " ".join(parts)


def _value(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _commands() -> Iterator[str]:
    yield "# The command line"
    yield f"\n{MADE}\n"
    yield "`ddpm COMMAND --help` says the same. `python -m ddpm` is `ddpm`."
    yield (
        "\nExit codes: 0 done; 1 failed, with the reason; 2 wrong usage or configuration; 130 or 143 interrupted, "
        "after saving."
    )
    yield from _parsers(_parser(), "ddpm", "")


def _parsers(parser: argparse.ArgumentParser, name: str, words: str) -> Iterator[str]:
    """A section for a command, and for those below it."""
    actions = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
    below = [a for a in actions if isinstance(a, argparse._SubParsersAction)]
    own = [a for a in actions if a not in below and a.option_strings != ["--version"]]
    if name != "ddpm":
        yield f"\n## {name}\n"
        yield f"{words[:1].upper()}{words[1:]}." if words else ""
    if own:
        yield "\n| argument | |\n|---|---|"
        yield from (f"| {_argument(action)} | {_cell(_help(action))} |" for action in own)
    for group in below:
        helps = {choice.dest: choice.help or "" for choice in group._choices_actions}
        for command, child in group.choices.items():
            yield from _parsers(child, f"{name} {command}", helps.get(command, child.description or ""))


def _argument(action: argparse.Action) -> str:
    plain = str(action.metavar or action.dest)
    if not action.option_strings:
        return f"`{plain}`" + (" ..." if action.nargs in ("+", "*") else "")
    if action.nargs == 0:
        return f"`{action.option_strings[-1]}`"
    choices = "\\|".join(map(str, action.choices)) if action.choices and not action.metavar else plain
    shown = choices if action.metavar or action.choices else plain.upper()
    return f"`{action.option_strings[-1]} {shown}`" + (" (needed)" if action.required else "")


def _help(action: argparse.Action) -> str:
    words = (action.help or "").replace("%%", "%")
    return words.replace("%(default)s", str(action.default))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    for name, text in pages().items():
        write_text(OUT / name, text)


if __name__ == "__main__":
    main()
