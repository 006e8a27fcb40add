"""`llmft explain CODE`."""

from __future__ import annotations

from llmft.api.errors import RecipeError
from llmft.cli.commands.output import prose
from llmft.cli.error_codes import CODES
from llmft.system.nearest import did_you_mean


def explanations(code: str | None) -> list[dict[str, str]]:
    """Return what a code means and how to fix it; without a code, that of all codes."""
    if code is None:
        wanted = sorted(CODES)
    else:
        # 'e12', '12' and 'E012' are one code to a person.
        spelled = f"E{code.upper().removeprefix('E').zfill(3)}"
        if spelled not in CODES:
            raise RecipeError(
                "E090",
                f"no error has the code '{code}'",
                fix=did_you_mean(spelled, CODES) or "llmft explain, without a code, lists them all",
            )
        wanted = [spelled]
    return [
        dict(zip(("code", "title", "meaning", "mend"), (key, *CODES[key]), strict=True))
        for key in wanted
    ]


def as_text(found: list[dict[str, str]]) -> str:
    """Return one code's explanation in full, or a line for each of many."""
    if len(found) > 1:
        return "\n".join(f"{item['code']}  {item['title']}" for item in found)
    item = found[0]
    return prose(f"{item['code']}: {item['title']}\n\n{item['meaning']}\n\nfix: {item['mend']}")
