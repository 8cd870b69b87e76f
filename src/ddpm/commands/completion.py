"""`ddpm completion`: a script that completes ddpm's commands and options in the shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from functools import partial

from ddpm.commands.arguments import Commands

_HOW = """to use it:
  bash   ddpm completion bash > ~/.local/share/bash-completion/completions/ddpm
  zsh    ddpm completion zsh > ~/.ddpm-completion; echo 'source ~/.ddpm-completion' >> ~/.zshrc
  fish   ddpm completion fish > ~/.config/fish/completions/ddpm.fish"""


def add(commands: Commands) -> None:
    completion = commands.add_parser(
        "completion",
        help="print a script that completes commands and options in your shell",
        epilog=_HOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    completion.set_defaults(command=partial(_run, commands))


def _run(commands: Commands, options: argparse.Namespace) -> None:
    parsers: Mapping[str, argparse.ArgumentParser] = commands.choices
    if options.shell == "fish":
        print("\n".join(_fish(parsers)))
        return
    if options.shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(_bash(parsers))


def _options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options and arguments of a command, those of its own sub-commands too."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _options(inner)


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """What may be typed without a value: options, and the words of arguments with a choice."""
    words: dict[str, None] = {}
    for action in _options(parser):
        names = action.option_strings or [str(choice) for choice in action.choices or ()]
        words |= dict.fromkeys(names)
    return list(words)


def _choices(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """The words that may follow an option, for those that take one of a few."""
    return {
        name: [str(choice) for choice in action.choices]
        for action in _options(parser)
        if action.choices
        for name in action.option_strings
    }


def _shipped() -> str:
    """The configurations that come with the package."""
    from ddpm.config import shipped_configs

    root = shipped_configs()
    return " ".join(sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml")))


def _bash(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    lines = [
        "_ddpm() {",
        '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""',
        '    local command="${COMP_WORDS[1]}"',
        "    if [ $COMP_CWORD -eq 1 ]; then",
        f'        COMPREPLY=($(compgen -W "{" ".join(parsers)} --help --version" -- "$word")); return',
        "    fi",
        '    case "$command $before" in',
    ]
    for command, parser in parsers.items():
        for option, choices in _choices(parser).items():
            lines.append(f'        "{command} {option}") words="{" ".join(choices)}" ;;')
    lines += [
        "    esac",
        '    if [ -n "$words" ]; then COMPREPLY=($(compgen -W "$words" -- "$word")); return; fi',
        '    case "$command" in',
    ]
    for command, parser in parsers.items():
        extra = f" {_shipped()}" if command in ("train", "config") else ""
        lines.append(f'        {command}) words="{" ".join(_words(parser))}{extra}" ;;')
    lines += [
        "    esac",
        '    COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))',
        "}",
        "complete -o filenames -F _ddpm ddpm",
    ]
    return "\n".join(lines)


def _fish(parsers: Mapping[str, argparse.ArgumentParser]) -> Iterator[str]:
    yield f'complete -c ddpm -n __fish_use_subcommand -f -a "{" ".join(parsers)}"'
    for command, parser in parsers.items():
        seen = f'-n "__fish_seen_subcommand_from {command}"'
        for action in _options(parser):
            choices = " ".join(str(choice) for choice in action.choices or ())
            takes = f' -x -a "{choices}"' if choices else " -r" if action.nargs != 0 and action.option_strings else ""
            for option in action.option_strings:
                kind = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
                yield f"complete -c ddpm {seen} {kind}{takes}"
            if choices and not action.option_strings:
                yield f'complete -c ddpm {seen} -a "{choices}"'
        if command in ("train", "config"):
            yield f'complete -c ddpm {seen} -a "{_shipped()}"'
