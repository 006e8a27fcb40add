"""A run's session: what upstream says before there is a log does not reach the terminal."""

from __future__ import annotations

import logging
import sys
import warnings

from llmft.engine import session


def test_upstreams_chatter_before_the_run_has_a_log_is_not_shown(run, recipe, monkeypatch, capsys):
    plain, heard = session.refuse_faults, []

    def chatters(job, base):
        print("a banner")
        print("a bar", file=sys.stderr)
        logging.getLogger("transformers").warning("an advice")
        warnings.warn("it will be removed in v6", FutureWarning, stacklevel=1)
        heard.append(job)
        plain(job, base)

    monkeypatch.setattr(session, "refuse_faults", chatters)
    run(recipe)
    said = "".join(capsys.readouterr())
    assert heard
    assert not [word for word in ("banner", "a bar", "advice", "removed") if word in said]
