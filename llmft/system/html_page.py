"""HTML pages that show rows or answers: whatever is put in is text, and nothing in them runs."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from llmft.api.shown_text import escaped
from llmft.system.plain_files import open_to_read

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
{{ body | safe }}
</body>
</html>
"""


def html_page(title: str, body: str, style: str = "", **values: Any) -> str:
    """Return a page in one file, which asks for nothing and runs nothing.

    body: a Jinja template of ours; what it is given as `values` is escaped wherever it stands, and
    has no say in the page. style: CSS of ours. Raises jinja2.UndefinedError for a missing value.
    """
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none';"
        " form-action 'none'"
    )
    inside = _template(body, _shown).render(**values)
    page: str = _template(_PAGE).render(
        title=escaped(title), body=inside, style=style, policy=policy
    )
    return page


@cache  # compiling a page takes longer than filling it
def _template(text: str, finalize: Callable[[Any], Any] | None = None) -> Any:
    from jinja2 import Environment, StrictUndefined

    pages = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=finalize, keep_trailing_newline=True
    )
    return pages.from_string(text)


def is_ours(page: Path) -> bool:
    """Return whether a file is a page that `html_page` wrote, which a newer one may replace."""
    begins = _PAGE.partition("{{")[0].encode()
    try:
        with os.fdopen(open_to_read(page), "rb") as file:
            return not page.is_symlink() and file.read(len(begins)) == begins
    except OSError:
        return False


def _shown(value: Any) -> Any:
    return escaped(value) if type(value) is str else value
