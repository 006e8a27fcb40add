"""A tiny recipe in a file, as the tests of faults have it."""

from tests.end_to_end.faults.conftest import recipe_file

__all__ = ["recipe_file"]
