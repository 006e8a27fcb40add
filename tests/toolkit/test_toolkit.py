"""What the toolkit offers is what it says that it offers."""

from __future__ import annotations

import inspect

from llmft import toolkit


def test_every_public_function_of_the_toolkit_is_listed():
    made = {
        name
        for name, thing in vars(toolkit).items()
        if inspect.isfunction(thing)
        and thing.__module__ == toolkit.__name__
        and not name.startswith("_")
    }
    assert sorted(made - set(toolkit.__all__)) == []
