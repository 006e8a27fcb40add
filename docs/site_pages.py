"""What the site adds to docs/: the project's own pages, and links that lead out of docs/.

A link in a page is written as a code host needs it. On the site, one to a page of the project's
root leads to its page here, and one to any other file leads to the file on the code host.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
OF_THE_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "report-a-hole.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
    "docs/decisions": "decisions/index.md",
}
"""What has a page on the site without being a page of docs/: its path, and the page's."""

FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
OFF_THE_SITE = re.compile(r"<!-- not on the site -->.*?<!-- -->\n*", re.DOTALL)
LINK = re.compile(r"(\]\()(?!https?://|mailto:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the project's root, and the list of decisions."""
    from mkdocs.structure.files import File

    for source, page in OF_THE_ROOT.items():
        path = ROOT / source
        text = path.read_text("utf-8") if path.is_file() else _list_of_decisions(path)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Return a page's text with links as the site needs them."""
    origin = next((s for s, p in OF_THE_ROOT.items() if p == page.file.src_uri), None)
    # A list of decisions is made for the site, so its links are the site's already.
    if origin and not (ROOT / origin).is_file():
        return markdown
    markdown = OFF_THE_SITE.sub("", markdown)
    return with_site_links(markdown, origin or f"docs/{page.file.src_uri}", config["repo_url"])


def with_site_links(markdown: str, source: str, repository: str) -> str:
    """Return Markdown in which links to files lead where the site has them.

    source: the file that holds it, from the project's root. Code blocks stay as they are.
    """
    folder = posixpath.dirname(source)
    here = posixpath.dirname(OF_THE_ROOT.get(source, source.removeprefix("docs/")))

    def led(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        page = OF_THE_ROOT.get(target)
        if page is None and target.startswith("docs/") and _is_on_the_site(target):
            page = target.removeprefix("docs/")
        if page is not None:
            return match[1] + posixpath.relpath(page, here or ".")
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"{match[1]}{repository}/{kind}/main/{target}"

    parts, end = [], 0
    for block in FENCE.finditer(markdown):
        parts += [LINK.sub(led, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, LINK.sub(led, markdown[end:])])


def _is_on_the_site(target: str) -> bool:
    return (ROOT / target).is_file() and Path(target).suffix not in (".py", ".jsonl")


def _list_of_decisions(folder: Path) -> str:
    lines = ["# Decisions", "", "Choices that would be costly to undo, with what was tried.", ""]
    for path in sorted(folder.glob("0*.md")):
        title = path.read_text("utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title.replace('. ', ': ', 1)}]({path.name})")
    return "\n".join([*lines, ""])
