"""Trackers are forgiven: one that fails is left out, and the others go on."""

from __future__ import annotations

import pytest

from llmft.api import Progress, Tracker, TrackerConfig
from llmft.engine.trackers import Trackers


class Listening(Tracker[TrackerConfig]):
    method = "listening"
    Config = TrackerConfig

    def __init__(self, breaks: BaseException | None = None) -> None:
        self.heard, self.breaks = [], breaks

    def progress(self, progress):
        self.heard.append(progress.done)
        if self.breaks and progress.done == 2:
            raise self.breaks

    def note(self, text):
        self.heard.append(text)


@pytest.mark.parametrize("kind", [ConnectionError, SystemExit])
def test_n3_a_tracker_that_fails_is_reported_once_and_dropped(kind):
    good, bad = Listening(), Listening(breaks=kind("the network is gone"))
    trackers = Trackers([bad, good])
    for step in range(1, 5):
        trackers.progress(Progress("sft", "train", step, 4))
    assert bad.heard == [1, 2]
    assert [h for h in good.heard if isinstance(h, int)] == [1, 2, 3, 4]
    (said,) = [h for h in good.heard if isinstance(h, str)]
    assert "'listening' failed and is left out" in said
    assert "the network is gone" in said


def test_trackers_that_use_the_network_or_do_not_say_are_told_of():
    class Elsewhere(Listening):
        method, contacts = "elsewhere", "metrics.example.org"

    class Here(Listening):
        method, contacts = "here", ""

    assert Trackers([Listening(), Elsewhere(), Here()]).contacts() == [
        "tracker 'listening': it does not declare whether it uses the network",
        "tracker 'elsewhere' sends data to metrics.example.org",
    ]
