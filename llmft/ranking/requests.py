"""What the page is told: a sample to rank, what was saved, and that everything is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmft.ranking.ranking_session import Session

Asked = dict[str, Any]


class Desk:
    """Answers the page's questions about one session, as plain data.

    go_on: returns the command that goes on with the run, or '' where more people are waited for.
    agreed: returns the raters' agreement.
    """

    def __init__(
        self,
        session: Session,
        go_on: Callable[[], str] = str,
        agreed: Callable[[], float | None] | None = None,
    ) -> None:
        self.session, self._go_on = session, go_on
        self._agreed = agreed

    def item(self, at: int | None) -> Asked:
        """Return the sample with this number, or the first unrated one; or how it ended."""
        session = self.session
        if at is None:
            at = session.next_unrated()
        if at is None or not 0 <= at < len(session.samples):
            agreed = self._agreed() if self._agreed else None
            done = {
                "go_on": self._go_on(),
                "left": session.left_in_file,
                "agreement": agreed,
            }
            return self._progress() | {"at": None, "done": done}
        shown = session.show(at)
        prompt = shown.sample.prompt
        turns = [{"role": "", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        answers = [
            {"text": text, "copies": copies}
            for text, copies in zip(shown.texts, shown.copies, strict=True)
        ]
        said = {"ranking": shown.ranking, "all_bad": shown.all_bad} if shown.ranking else None
        return self._progress() | {
            "at": at,
            "item": shown.sample.id,
            "turns": turns,
            "answers": answers,
            "said": said,
            "next": session.next_unrated(at),
        }

    def decide(self, body: Any) -> Asked:
        """Save a decision, and then say so; ValueError where it is none."""
        if not isinstance(body, dict):
            raise ValueError("a decision is an object")
        item = body.get("item")
        self.session.decide(item, body.get("groups"), body.get("all_bad"), body.get("seconds"))
        at = next(n for n, sample in enumerate(self.session.samples) if sample.id == item)
        return self._progress() | {"saved": item, "next": self.session.next_unrated(at)}

    def _progress(self) -> Asked:
        session = self.session
        return {"rater": session.rater, "total": len(session.samples), "rated": session.rated}
