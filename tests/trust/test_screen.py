"""A stranger's text does not act: on a terminal, in a pipe, in a log, in a card or on a page."""

from __future__ import annotations

import io
import json
import sys
import threading
import unicodedata
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranking.browser import Browser, missing

from llmft.api import RunInfo
from llmft.api.errors import DataError, RecipeError
from llmft.api.shown_text import escaped, escaped_in_json
from llmft.cli import main as cli
from llmft.cli.commands import output
from llmft.cli.main import main
from llmft.ranking import read_samples
from llmft.ranking.log import rater_log
from llmft.ranking.ranking_session import Session
from llmft.ranking.requests import Desk
from llmft.ranking.server import Server
from llmft.system.html_page import html_page
from llmft.system.quiet import captured_output

ACTS = "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202e\u2066\r\x00\x7f\u200f"


def acts(text: str) -> list[str]:
    """Return the characters in a text that could act."""
    return [c for c in text if c in "\x1b\x07\x9b\u202e\u2066\r\x00\x7f\u200f\ud800"]


def test_exactly_what_acts_is_escaped():
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    marks = {"\u200e", "\u200f", "\u061c"}
    for point in range(sys.maxunicode + 1):
        char = chr(point)
        control = unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t"
        if control or unicodedata.bidirectional(char) in turning or char in marks:
            assert escaped(char) == f"<U+{point:04X}>"
        elif unicodedata.category(char)[0] in "LNMPSZ" and char not in "\u2028\u2029":
            assert escaped(char) == char
    for text in ("مرحبا", "שלום", "می‌خواهم", "👩‍🚀 é漢", "a\n\tb"):
        assert escaped(text) == text


def test_json_with_escapes_means_the_same():
    value = {"text": ACTS + "\u2028é\n"}
    told = escaped_in_json(json.dumps(value, ensure_ascii=False))
    assert acts(told) == []
    assert json.loads(told) == value


def test_an_answer_of_a_command_does_not_act_and_our_tables_keep_their_colours(monkeypatch, capsys):
    stolen = output._OUR_ESCAPE[:1] + "0" * 32 + "[31m"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    drawn = output.table(("a", f"b{ACTS}"), [("x", f"{ACTS}{stolen}")])
    shown = output.printable(f"{drawn}\n{ACTS}")
    assert "<U+001B>]0;owned<U+0007>" in shown
    left = shown.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert acts(left) == []
    cli._printed(ACTS)
    assert acts(capsys.readouterr().out) == []


@pytest.mark.parametrize("terminal", [True, False])
def test_errors_do_not_act(monkeypatch, terminal):
    err = io.StringIO()
    monkeypatch.setattr(err, "isatty", lambda: terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", err)
    cli._reported(DataError("E101", f"row {ACTS}\nnext", fix=ACTS), False)
    several = RecipeError.of(list(DataError("E101", ACTS).faults * 2))
    cli._reported(several, False)
    assert "<U+001B>" in err.getvalue()
    assert acts(err.getvalue()) == []


def test_what_a_run_says_and_logs_does_not_act(monkeypatch, tmp_path):
    from llmft_trackers.console import Console

    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    console = Console(Console.Config(method="console"))
    console.run_started(RunInfo("r", tmp_path, {}, ("s",)))
    console.note(ACTS)
    sample = {"prompt": f"p{ACTS}", "answer": ACTS}
    console.stage_finished(
        "s", {"samples": [{**sample, "when": "before"}, {**sample, "when": "after"}]}
    )
    console.scored("s", "after", {f"m{ACTS}": 1.0})
    assert "<U+001B>" in out.getvalue()
    assert acts(out.getvalue()) == []
    with captured_output(tmp_path / "log.txt"):
        print(f"$(touch x) {ACTS} é", flush=True)
        import logging

        logging.getLogger("any").warning("row %s", ACTS)
    log = (tmp_path / "log.txt").read_bytes().decode()
    assert log.count("<U+001B>") == 4
    assert "é" in log
    assert acts(log) == []


def test_commands_show_names_and_rows_as_text(tmp_path, capsys):
    name = f"a{ACTS}".replace("\x00", "").replace("\x7f", "")
    for words in (
        ["run", str(tmp_path / name)],
        ["rank", str(tmp_path / name)],
        ["generate", str(tmp_path / name), "q"],
        [name],
        ["show", name],
        ["explain", name],
    ):
        assert main(words) != 0
        told = capsys.readouterr()
        assert acts(told.out + told.err) == [], words
    (tmp_path / "s.jsonl").write_text(
        json.dumps({"prompt": ACTS, "completions": [ACTS, "b"], "answers": []}) + "\n"
    )
    (tmp_path / "ratings").mkdir()
    (tmp_path / "ratings" / "x\x1b[31m.jsonl").write_text("")
    assert main(["rank", str(tmp_path / "s.jsonl"), "--status"]) == 0
    told = capsys.readouterr().out
    assert "is not named after a rater" in told
    assert acts(told) == []


def test_a_card_does_not_act():
    from llmft.hub import model_card

    assert "escaped(without_secrets(text))" in Path(model_card.__file__).read_text()


# --- pages -----------------------------------------------------------------------------------

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
