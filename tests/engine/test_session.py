"""A run's session: what upstream says before there is a log does not reach the terminal."""

from __future__ import annotations

import logging
import sys
import warnings

from llmft.engine import session
from llmft.engine.session import resume_recipe
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry


def test_upstreams_chatter_before_the_run_has_a_log_is_not_shown(run, recipe, monkeypatch, capsys):
    plain, heard = session.refuse_faults, []

    def chatters(job, base, **more):
        print("a banner")
        print("a bar", file=sys.stderr)
        logging.getLogger("transformers").warning("an advice")
        warnings.warn("it will be removed in v6", FutureWarning, stacklevel=1)
        heard.append(job)
        plain(job, base, **more)

    monkeypatch.setattr(session, "refuse_faults", chatters)
    run(recipe)
    said = "".join(capsys.readouterr())
    assert heard
    assert not [word for word in ("banner", "a bar", "advice", "removed") if word in said]


def test_a_run_that_was_killed_while_it_wrote_its_report_writes_it_when_it_goes_on(recipe, run):
    recipe["stages"][0]["evaluate"] = None
    folder = run(recipe).folder
    (folder / "report.html").rename(folder / ".staging-report.html-x")
    again = resume_recipe(load_recipe(folder / "resolved.yaml", Registry.discover()), folder)
    assert not again.already_finished
    assert (folder / "report.html").is_file()
    assert not list(folder.glob(".staging-*"))
    job = load_recipe(folder / "resolved.yaml", Registry.discover())
    assert resume_recipe(job, folder).already_finished
