"""`llmft generate RUN QUESTION...`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from llmft.registry.registry import Registry
from llmft.system.quiet import captured_output


def answers(
    run: str,
    questions: Sequence[str],
    stage: str | None,
    max_new_tokens: int,
    *,
    adapter: bool,
    step: int | None = None,
    system: str = "",
    turns: bool = False,
    raw: bool = False,
) -> list[dict[str, str]]:
    """Return each question with the answer of a run's model, or of its base without `adapter`.

    step: of the checkpoint after so many steps. system, turns, raw: see `Asking`.
    """
    with captured_output(Path(os.devnull)):  # upstream's chatter is no part of an answer
        from llmft.inference.answering import answer, load_run
        from llmft.inference.asking import Asking

        folder = Path(run)
        texts = answer(
            load_run(folder, Registry.discover()),
            folder,
            questions,
            stage=stage,
            max_new_tokens=max_new_tokens,
            with_adapter=adapter,
            step=step,
            asking=Asking(system, turns, raw),
        )
    return [
        {"question": question, "answer": text}
        for question, text in zip(questions, texts, strict=True)
    ]
