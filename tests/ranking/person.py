"""A rater before the page: what is seen there, and what the program has on disk."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack

from llmft.ranking import Decision
from llmft.ranking.log import rater_log
from llmft.ranking.ranking_session import Session
from llmft.ranking.requests import Desk

from .conftest import lines, served

ORDER = "#answers li"


class Person:
    """One rater, called anna, on three prompts."""

    def __init__(self, browser, samples_file, samples, ratings):
        self.browser, self.file = browser, samples_file
        self.samples, self.ratings = samples, ratings
        self.process: subprocess.Popen[str] | None = None
        self.here = ExitStack()
        self.address = ""

    def start_here(self):
        """Serve from this process, which takes no time."""
        log = self.here.enter_context(rater_log(self.ratings, "anna"))
        desk = Desk(Session(self.samples, "anna", log), lambda: "llmft run x --resume", lambda: 0.5)
        self.address = self.here.enter_context(served(desk, "t" * 43)).address

    def start(self, *args):
        """Start the program, which may have been killed before."""
        command = [sys.executable, "-m", "llmft", "rank", str(self.file), "--rater", "anna"]
        self.process = subprocess.Popen(
            [*command, "--no-open", *args], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        self.address = self.process.stdout.readline().split()[-1]

    def open(self):
        """Open the page, and wait for the first prompt."""
        self.browser.open(self.address)
        self.sees(1)
        self.browser.log()

    def end(self, number=signal.SIGINT) -> str:
        if self.process is None:
            return ""
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=20)
        self.process = None
        return out

    def sees(self, number):
        """Wait until this prompt is on the page, ready to be ranked."""
        self.browser.wait(
            "return document.querySelector('#title').textContent === arguments[0]"
            " && !document.body.classList.contains('busy')",
            f"Prompt {number} of 3",
        )

    def sees_the_end(self):
        self.browser.wait("return !document.querySelector('#done').hidden")

    def order(self) -> str:
        """Return the ranking on the page, such as 'B>A=C'."""
        text = ""
        for name, tied in self.browser.run(
            "return [...document.querySelectorAll('#answers li')].map((li) =>"
            " [li.querySelector('.name').textContent[7], li.classList.contains('tied')])"
        ):
            text += ("=" if tied else ">") + name
        return text[1:]

    def saved(self) -> list[str]:
        """Return the rankings on disk, in the letters that this rater sees."""
        found = []
        with rater_log(self.ratings, "reader") as log:  # only to know anna's order of the answers
            session = Session(self.samples, "anna", log)
            for line in lines(self.ratings):
                at = [sample.id for sample in session.samples].index(line["item"])
                log.decisions.clear()
                log.decisions[line["item"]] = read_ratings_line(self.ratings, line)
                shown = session.show(at)
                groups = ["=".join(chr(65 + n) for n in group) for group in shown.ranking]
                found.append("all bad" if line["all_bad"] else ">".join(groups))
        return found

    def focus(self, letter):
        self.browser.run(
            "[...document.querySelectorAll('#answers .card')]"
            ".find((c) => c.ariaLabel.startsWith(`Answer ${arguments[0]}`)).focus()",
            letter,
        )

    def card(self, letter) -> str:
        return f"{ORDER}[data-answer='{ord(letter) - 65}']"

    def announced(self) -> str:
        return self.browser.text("#live").strip("\u00a0")


def read_ratings_line(ratings, line):
    """Return a line of the file as a decision."""
    ranking = tuple(map(tuple, line["ranking"]))
    return Decision(line["item"], ranking, line["all_bad"], line["time"], line["seconds"])
