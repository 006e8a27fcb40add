"""Tasks bring no code, and no rows from elsewhere."""

from __future__ import annotations

import pytest

from llmft.api.errors import TrustError
from llmft.evaluation.harness.guard import refuse_other_hosts


@pytest.mark.parametrize(
    "given",
    [{"data_files": {"test": ["https://elsewhere.example/x.json"]}}, {"trust_remote_code": True},
     ["ftp://elsewhere.example/x"]],
)  # fmt: skip
def test_rows_of_other_hosts_and_made_by_code_are_refused(given):
    with pytest.raises(TrustError, match="E607"):
        refuse_other_hosts(given)
    refuse_other_hosts({"data_files": "hf://datasets/a/b/x.json", "path": "/rows.json"})
