"""Rows and answers on a page are text, in a headless browser."""

from __future__ import annotations

import json
import threading

import pytest

from llmft.api.shown_text import escaped
from llmft.ranking import read_samples
from llmft.ranking.log import rater_log
from llmft.ranking.ranking_session import Session
from llmft.ranking.requests import Desk
from llmft.ranking.server import Server
from llmft.system.html_page import html_page
from tests.acting_text import ACTS
from tests.ranking.browser import Browser, missing

PAYLOADS = [
    "<script>window.owned = 1; document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "<svg onload=\"document.title = 'owned'\"><script>document.title = 'owned'</script></svg>",
    "</pre></td></template><script>document.title = 'owned'</script>",
    "\" onmouseover=\"document.title = 'owned'\" autofocus onfocus=\"document.title='owned'\" x=\"",
    "' onclick='document.title=1' x='",
    "{{ 7 * 7 }}{% for x in ().__class__.__bases__ %}{% endfor %}${7*7}#{7*7}",
    "<template></template><iframe srcdoc=\"<script>parent.document.title=1</script>\"></iframe>",
    "<a href=\"javascript:document.title='owned'\">x</a><base href=//evil.example>",
    "<meta http-equiv=refresh content='0;url=data:text/html,owned'><style>*{display:none}</style>",
    "<!--<math><mtext><mglyph><style><!--</style><img title=\"--&gt;&lt;img onerror=alert()&gt;\">",
]  # fmt: skip
BODY = """<h1>{{ heading }}</h1>
<p title="{{ rows[0] }}">hover</p><input value="{{ rows[0] }}">
<table>{% for row in rows %}<tr><td id="r{{ loop.index }}">{{ row }}</td></tr>{% endfor %}
</table>"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if missing():
        pytest.skip(missing())
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


def test_rows_on_a_page_are_text(browser, tmp_path):
    rows = [*PAYLOADS, ACTS.replace("\x00", "")]
    path = tmp_path / "page.html"
    path.write_text(html_page("Rows", BODY, "td { color: red }", heading="<b>h</b>", rows=rows))
    browser.open(f"file://{path}")
    assert browser.run("return document.title") == "Rows"
    for number, row in enumerate(rows, 1):
        assert browser.run(f"return document.getElementById('r{number}').textContent") == escaped(
            row
        )
    found = browser.run("return document.querySelectorAll('script,svg,img,iframe,b,a,base').length")
    assert found == 0
    assert browser.run("return document.querySelector('p').title") == PAYLOADS[0]
    assert (
        browser.run("return getComputedStyle(document.querySelector('td')).color")
        == "rgb(255, 0, 0)"
    )


def test_a_page_runs_no_script_even_where_one_gets_in(browser, tmp_path):
    path = tmp_path / "page.html"
    body = "<p id=p onclick=\"document.title='owned'\">x</p><script>document.title='owned'</script>"
    path.write_text(html_page("Rows", body))
    browser.open(f"file://{path}")
    browser.run("document.getElementById('p').click()")
    assert browser.run("return document.title") == "Rows"


def test_answers_on_the_ranking_page_are_text(browser, tmp_path):
    (tmp_path / "s.jsonl").write_text("".join(
        json.dumps({"prompt": text, "completions": [text, f"{text} b"], "answers": []}) + "\n"
        for text in PAYLOADS
    ))  # fmt: skip
    samples = read_samples(tmp_path / "s.jsonl")
    with rater_log(tmp_path / "ratings", "ann") as log:
        session = Session(samples, "ann", log)
        server = Server(Desk(session), "t" * 43)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            for number, text in enumerate(PAYLOADS, 1):
                browser.open(server.address)
                wanted = f"Prompt {number} of {len(PAYLOADS)}"
                browser.wait(f"return document.getElementById('title').textContent === {wanted!r}")
                shown = browser.run(
                    "return [...document.querySelectorAll('ol .text')].map(e => e.textContent)"
                )
                assert sorted(shown) == sorted([text, f"{text} b"])
                assert "owned" not in browser.run("return document.title")
                odd = "document.querySelectorAll('main script, main svg, main img, main iframe')"
                assert browser.run(f"return {odd}.length") == 0
                session.decide(session.samples[number - 1].id, [[0], [1]], False, 1.0)
        finally:
            server.shutdown()
            server.server_close()
