"""What mkdocs asks of us: the order of the pages, and links that lead out of docs/.

On a repository's host a link such as `../../src/ddpm/diffusion.py` opens the file. On the site it opens a page that
shows the file, at the line of the name that the link's text says: [`Diffusion.q_sample`](../../src/ddpm/diffusion.py).
Markdown files beside docs/ become pages of their own.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files beside docs/ that are pages of the site, and their names there."""
HIDDEN = ("figures", "tools")
"""Folders of docs/ that are no pages of the site."""
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".cpp": "cpp", ".h": "cpp"}
FIRST = ["paper", "fidelity", "objectives", "training", "samplers", "guidance", "likelihood", "evaluation", "editing"]
"""Guides in this order; those that are not named come after, by name."""

TOKEN = re.compile(
    r"^(?P<indent> *)(?P<fence>```+|~~~).*?^(?P=indent)(?P=fence)\s*?$"  # a block of code
    r"|(?P<head>\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\()(?P<target>[^)\s]+)\)"  # a link or a picture
    r"|`[^`\n]+`",  # code in a line
    re.M | re.S,
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of files outside docs/ that some page links to, and put all pages in their order."""
    for name, uri in PAGES.items():
        if (ROOT / name).is_file():
            files.append(File.generated(config, uri, content=(ROOT / name).read_text()))
    for path in sorted({path for file in files.documentation_pages() for path in _linked(file)}):
        files.append(File.generated(config, _source_uri(path), content=_source_page(path)))
    config.nav = _order([file.src_uri for file in files.documentation_pages()])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links out of docs/ to the pages that stand for those files."""
    if page.file.src_uri.startswith("source/"):
        return markdown

    def changed(link: re.Match[str]) -> str:
        target = _target(page.file, link["target"])
        if target is None:
            return link[0]
        path, anchor = target
        if _is_page(path):
            uri = PAGES.get(path.as_posix()) or path.relative_to("docs").as_posix()
            return f"{link['head']}{_relative(uri, page.file)}{anchor})"
        line, name = None, link["text"].strip("`")
        if path.suffix == ".py" and link["text"].startswith("`") and not name.endswith((".py", "/")):
            line = line_of(path, name)
        # mkdocs would look for the lines' anchors in vain: it is told the address when the page is done.
        return f"{link['head']}source://{path.as_posix()}{anchor or (f'#__codelineno-0-{line}' if line else '')})"

    return _links(markdown, changed)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Give links to source files their addresses, and bars in the code of a table no backslash."""
    html = re.sub(r"<td.*?</td>", lambda cell: cell[0].replace("\\|", "|"), html, flags=re.S)
    top = posixpath.relpath(".", posixpath.dirname(page.file.src_uri) or ".")
    return re.sub(r'"source://([^"#]+)', rf'"{top}/source/\1.html', html)


def _links(markdown: str, change: Callable[[re.Match[str]], str]) -> str:
    """`change` applied to the links that are not in code."""
    return TOKEN.sub(lambda token: change(token) if token["target"] else token[0], markdown)


def _linked(file: File) -> list[Path]:
    """The files outside docs/ that a page links to, as paths below the root."""
    found: list[Path] = []

    def note(link: re.Match[str]) -> str:
        target = _target(file, link["target"])
        if target and not _is_page(target[0]):
            found.append(target[0])
        return link[0]

    _links(file.content_string, note)
    return found


def _target(file: File, link: str) -> tuple[Path, str] | None:
    """Where a link leads, below the root, and its anchor; None where it may stay as it is."""
    name, hash_, anchor = link.partition("#")
    if not name or "://" in name or name.startswith("mailto:"):
        return None
    home = {uri: "" for uri in PAGES.values()}.get(file.src_uri, f"docs/{posixpath.dirname(file.src_uri)}")
    path = Path(posixpath.normpath(posixpath.join(home, name)))
    if home and path.is_relative_to("docs") and path.parts[1] not in HIDDEN:
        return None
    if not (ROOT / path).exists():
        raise PluginError(f"{file.src_uri}: the link {link} leads to nothing ({path})")
    return path, hash_ + anchor


def _is_page(path: Path) -> bool:
    """Whether the site has a file under its own name (or, beside docs/, as a page)."""
    return path.as_posix() in PAGES or (path.is_relative_to("docs") and path.parts[1] not in HIDDEN)


def _relative(uri: str, file: File) -> str:
    return posixpath.relpath(uri, posixpath.dirname(file.src_uri) or ".")


def _source_uri(path: Path) -> str:
    return f"source/{path.as_posix()}.md"


def _source_page(path: Path) -> str:
    """A page that shows a file, or lists a folder."""
    full = ROOT / path
    head = f"---\nsearch:\n  exclude: true\n---\n# {path.as_posix()}\n\n"
    if full.is_dir():
        names = sorted(p.name + "/" * p.is_dir() for p in full.iterdir() if not p.name.startswith(("_", ".")))
        return head + "".join(f"- `{name}`\n" for name in names)
    text = full.read_text()
    if path.suffix == ".md":
        return f"---\nsearch:\n  exclude: true\n---\n{text}"
    fence = "`" * 6
    return f'{head}{fence}{LANGUAGES.get(path.suffix, "text")} linenums="1"\n{text}\n{fence}\n'


def line_of(path: Path, name: str) -> int:
    """The line on which a file defines `name`: "f", "Class", "Class.method", with or without the rooms before it.

    Raises PluginError where it does not.
    """
    parts, lines = name.removesuffix("()").split("."), lines_of(ROOT / path)
    for skipped in range(len(parts)):
        found = lines.get(".".join(parts[skipped:]))
        if found and set(parts[:skipped]) <= set(path.with_suffix("").parts):
            return found
    raise PluginError(f"`{name}` is not in {path}")


@cache
def lines_of(path: Path) -> dict[str, int]:
    """Every name that a Python file defines, dotted, with its line."""
    found: dict[str, int] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[prefix + node.name] = node.lineno
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[prefix + node.target.id] = node.lineno
            elif isinstance(node, ast.Assign):
                found.update({prefix + t.id: node.lineno for t in node.targets if isinstance(t, ast.Name)})

    visit(ast.parse(path.read_text()).body, "")
    return found


def _order(uris: list[str]) -> list[Any]:
    """The navigation: what is in a folder by name, the guides as `FIRST` has them, new pages by themselves."""

    def below(folder: str) -> list[str]:
        found = (uri for uri in uris if uri.startswith(f"{folder}/"))
        return sorted(found, key=lambda uri: (not uri.endswith("/README.md"), uri))

    special = {"index.md", "faq.md", *PAGES.values()}
    guides = [uri for uri in uris if "/" not in uri and uri not in special]
    rank = {f"{name}.md": place for place, name in enumerate(FIRST)}
    guides.sort(key=lambda uri: (rank.get(uri, len(rank)), uri))
    nav: list[Any] = ["index.md", {"Lesson": below("lesson")}, {"How to": below("howto")}, {"Guides": guides}]
    nav += [{"Reference": below("reference")}, {"FAQ": "faq.md"}, {"Project": [u for u in PAGES.values() if u in uris]}]
    return nav
