"""Build the documentation site: `python docs/build.py [--out build/docs]`, or `make site`.

The pages in docs/ are written to be read where they lie. For the site they are copied and

- formulas become MathML, so that a page needs no script to show them;
- a link to a file or folder outside docs/ leads to a page that shows it;
- a page for each command (its `--help`) and for each module (its docstrings) is added.

A link that leads nowhere, a page that the navigation lacks and a formula that cannot be read stop the build.
"""

import argparse
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".sbatch": "bash", ".json": "json"}
#: Pages of the site that lie elsewhere in the repository.
ELSEWHERE = {"contributing.md": "CONTRIBUTING.md"}
#: Not a page, or told by another page.
PRIVATE = ("trl_opd.cli", "trl_opd.__main__", "trl_opd.boards.child", "trl_opd.evals.vllm_worker")
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


class BrokenDocs(Exception):
    """Something in the pages that a reader would stumble over."""


def main() -> None:
    """Build the site and say where it is."""
    os.environ["COLUMNS"] = "100"  # of the commands' help
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs", help="folder of the site")
    out = parser.parse_args().out.resolve()
    try:
        stage(out)
    except BrokenDocs as error:
        sys.exit(f"error: {error}")
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict", "--clean", "-f", "mkdocs.yml"]
    subprocess.run(command, cwd=out, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    print(f"site: {out / 'site' / 'index.html'}")


def stage(out: Path) -> None:
    """Write the pages and the configuration that the site is built from.

    Raises:
        BrokenDocs: A link, a formula or the navigation is wrong.
    """
    shutil.rmtree(out, ignore_errors=True)
    pages = out / "pages"
    shutil.copytree(DOCS, pages, ignore=shutil.ignore_patterns("*.py", "site.yml", "__pycache__"))
    shown: set[Path] = set()
    homes = {page: DOCS / page.relative_to(pages) for page in pages.rglob("*.md")}
    homes |= {pages / name: ROOT / source for name, source in ELSEWHERE.items()}
    for page, source in sorted(homes.items()):
        _write(page, _prose(source.read_text(), lambda text, s=source: formulas(relinked(text, s, shown), s)))
    _add_boards(pages)
    for path in sorted(shown):
        _write(pages / _source_page(path), _source_text(path))
    commands, modules = list(_command_pages()), list(_module_pages())
    for name, text in commands + modules:
        _write(pages / name, text)
    config = yaml.safe_load((DOCS / "site.yml").read_text())
    config["plugins"][1]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(ROOT)]
    config["nav"] = _navigation(config["nav"], pages, [name for name, _ in commands], [name for name, _ in modules])
    _write(out / "mkdocs.yml", yaml.safe_dump(config, sort_keys=False))


def formulas(text: str, source: Path) -> str:
    """`$...$` outside of code as MathML.

    Raises:
        BrokenDocs: A formula cannot be read.
    """
    code_or_formula = re.compile(r"`[^`\n]*`|\$([^$\n]+)\$")
    return code_or_formula.sub(lambda m: _mathml(m.group(1), "inline", source) if m.group(1) else m.group(), text)


def relinked(text: str, source: Path, shown: set[Path]) -> str:
    """Links out of docs/ made to lead to the pages that show those files; what is linked is added to `shown`.

    Raises:
        BrokenDocs: A link leads nowhere.
    """
    page = next((name for name, path in ELSEWHERE.items() if ROOT / path == source), None)
    folder = Path(page).parent if page else source.parent.relative_to(DOCS)

    def target(link: re.Match) -> str:
        address, anchor = link.group(1), link.group(2) or ""
        if re.match(r"[a-z]+:", address):
            return link.group()
        path = (source.parent / address).resolve()
        if not path.exists() or not path.is_relative_to(ROOT):
            raise BrokenDocs(f"{source.relative_to(ROOT)} links to {address}, which is not there.")
        relative = path.relative_to(ROOT)
        inside = next((name for name, where in ELSEWHERE.items() if Path(where) == relative), None)
        if inside is None and path.is_relative_to(DOCS):
            inside = str(path.relative_to(DOCS))
        if inside is None:
            shown.add(relative)
            inside, anchor = str(_source_page(relative)), ""
        return os.path.relpath(inside, folder) + anchor

    return LINK.sub(target, text)


def _prose(page: str, change: Callable[[str], str]) -> str:
    """The page with its text changed and its blocks of code kept; a block of mathematics becomes MathML."""
    parts = FENCE.split(page)
    return "".join(_block(part) if FENCE.fullmatch(part) else change(part) for part in parts)


def _block(block: str) -> str:
    if not block.startswith("```math\n"):
        return block
    return _mathml(block.removeprefix("```math\n").removesuffix("```"), "block", DOCS)


def _mathml(formula: str, display: str, source: Path) -> str:
    try:
        mathml = convert(formula, display=display).replace("\\_", "_")
    except Exception as error:  # the converter has an exception class for each way to fail
        raise BrokenDocs(f"{source.relative_to(ROOT)}: {formula.strip()!r} is no formula: {error}") from error
    if "\\" in mathml:
        raise BrokenDocs(f"{source.relative_to(ROOT)}: {formula.strip()!r} holds a command that is not known.")
    # Inside a span, since Markdown takes a line that begins with <math> for a block of its own.
    return f"<span>{mathml}</span>" if display == "inline" else f'\n<div class="formula">{mathml}</div>\n'


def _source_page(path: Path) -> Path:
    return Path("source") / (path / "index.md" if (ROOT / path).is_dir() else f"{path}.md")


def _source_text(path: Path) -> str:
    full = ROOT / path
    if full.is_dir():
        names = sorted(str(one.relative_to(full)) for one in full.rglob("*") if one.is_file() and _is_tracked(one))
        return f"# {path}\n\n" + "".join(f"- `{name}`\n" for name in names)
    if full.suffix == ".md":
        return re.sub(LINK, lambda link: link.group() if ":" in link.group(1) else "#", full.read_text())
    return f"# {path}\n\n````{LANGUAGES.get(full.suffix, 'text')}\n{full.read_text()}````\n"


def _is_tracked(path: Path) -> bool:
    return "__pycache__" not in path.parts and "runs" not in path.parts


def _add_boards(pages: Path) -> None:
    """The tables of the published boards under their page's last heading, beside copies of their own pages."""
    parts = []
    for table in sorted((ROOT / "leaderboards").glob("*/table.md")):
        if not (table.parent / "records").is_dir():
            continue  # made here and not published
        name = table.parent.name
        shutil.copytree(table.parent / "figures", pages / "boards" / name, dirs_exist_ok=True)
        shutil.copy(table.parent / "board.html", pages / "boards" / name / "board.html")
        title, _, text = table.read_text().partition("\n")
        drawn = (pages / "boards" / name / "forest.svg").exists()
        forest = f"![Differences to the baseline, with intervals](boards/{name}/forest.svg)\n" if drawn else ""
        link = f'<a href="boards/{name}/board.html">The whole page</a>, and its spec `leaderboards/{name}.yaml`.'
        parts.append(f"#{title}\n\n{link}\n\n{forest}{text}")
    page = pages / "boards.md"
    _write(page, page.read_text() + "\n" + "\n".join(parts))


def _command_pages() -> Iterator[tuple[str, str]]:
    """A page for each command: what it does, and the help of it and of its own commands."""
    from trl_opd.cli.main import COMMANDS

    for name, (_, purpose) in COMMANDS.items():
        parts = [f"# trl-opd {name}\n\n{purpose[0].upper()}{purpose[1:]}.\n"]
        for words in ([name], *([name, sub] for sub in _actions(name))):
            parts.append(f"## trl-opd {' '.join(words)}\n\n```text\n{_help(words)}```\n")
        yield f"commands/{name}.md", "\n".join(parts)


def _actions(command: str) -> list[str]:
    if command == "train":
        from trl_opd.methods import METHODS

        return list(METHODS)
    if command == "eval":
        from trl_opd.cli.eval import COMMANDS

        return list(COMMANDS)
    return []


def _help(words: list[str]) -> str:
    from trl_opd.cli.main import main as command

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            status = command([*words, "--help"])
    except SystemExit as done:  # argparse's way to end
        status = done.code
    if status:
        raise BrokenDocs(f"`trl-opd {' '.join(words)} --help` fails with exit status {status}.")
    return printed.getvalue()


def _module_pages() -> Iterator[tuple[str, str]]:
    """A page for each module of the package that says something."""
    for path in sorted((ROOT / "trl_opd").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        if name.startswith(PRIVATE) or any(part.startswith("_") for part in name.split(".")):
            continue
        if path.read_text().strip():
            yield f"api/{name}.md", f"# {name}\n\n::: {name}\n"


def _navigation(nav: list[Any], pages: Path, commands: list[str], modules: list[str]) -> list[Any]:
    """The navigation with its generated parts.

    Raises:
        BrokenDocs: It names a page that is not there, or lacks one that is.
    """
    nav = [*nav[:-1], {"Commands": commands}, nav[-1], {"API": _by_package(modules)}]
    nav = _expanded(nav, pages)
    named = set(_leaves(nav))
    there = {str(page.relative_to(pages)) for page in pages.rglob("*.md")}
    there = {name for name in there if not name.startswith("source/")}
    for lacking, what in ((named - there, "names pages that are not there"), (there - named, "lacks pages")):
        if lacking:
            raise BrokenDocs(f"The navigation in docs/site.yml {what}: {', '.join(sorted(lacking))}.")
    return nav


def _expanded(nav: list[Any], pages: Path) -> list[Any]:
    """`folder/*` replaced by the pages of the folder that no other entry names."""
    named = {leaf for leaf in _leaves(nav) if not leaf.endswith("*")}
    expanded: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            (title, value), *_ = entry.items()
            expanded.append({title: _expanded_among(value, pages, named)})
        else:
            expanded.append(entry)
    return expanded


def _expanded_among(value: Any, pages: Path, named: set[str]) -> Any:
    if not isinstance(value, list):
        return value
    found: list[Any] = []
    for entry in value:
        if isinstance(entry, str) and entry.endswith("/*"):
            inside = sorted(str(page.relative_to(pages)) for page in (pages / entry[:-2]).glob("*.md"))
            found += [name for name in inside if name not in named]
        else:
            found.append(entry)
    return found


def _by_package(modules: list[str]) -> list[Any]:
    groups: dict[str, list[str]] = {}
    for page in modules:
        parts = page.removeprefix("api/").removesuffix(".md").split(".")
        group = ".".join(parts[:2]) if len(parts) > 2 or (ROOT / Path(*parts)).is_dir() else "trl_opd"
        groups.setdefault(group, []).append(page)
    return [{name: [{Path(page).stem: page} for page in pages]} for name, pages in groups.items()]


def _leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for one in nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else ():
        yield from _leaves(one)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    main()
