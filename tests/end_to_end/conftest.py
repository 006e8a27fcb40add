"""The tiny recipe of tests/runs, and the function that runs it in this process."""

from tests.runs.conftest import recipe, rows_file, run

__all__ = ["recipe", "rows_file", "run"]
