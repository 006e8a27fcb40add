"""Data sets whose records stand in files or on the hub: the settings and the reading they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import Field, model_validator

from llmft.api import Dataset, DatasetConfig
from llmft.api.settings import Line
from llmft.data.tables import names_files, read_records


class TableConfig(DatasetConfig):
    """Where the records of a data set are."""

    path: Line | None = Field(
        None, description="a file, a folder with <split> files, a hub id, or 'embedded:<name>'"
    )
    subset: Line | None = Field(None, description="the hub data set's configuration")
    revision: Line | None = Field(None, description="the hub data set's commit, tag or branch")
    data_files: dict[Line, Line] | None = Field(
        None, min_length=1, max_length=20, description="a local file for each split"
    )

    @model_validator(mode="after")
    def _one_source(self) -> TableConfig:
        usual = type(self).model_fields["path"].default
        if self.path is None and self.data_files is None:
            raise ValueError("give either path or data_files")
        if self.data_files and self.path not in (None, usual):
            raise ValueError("path and data_files exclude each other; keep one")
        return self


C = TypeVar("C", bound=TableConfig)


class TableDataset(Dataset[C]):
    """A data set that reads its records from where its settings say; `row` is left to derive."""

    def is_local(self) -> bool:
        """Return whether the settings name files, not a data set on the hub."""
        return self.config.data_files is not None or names_files(self.config.path or "")

    def records(self, split: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the raw records of a split, each with its origin."""
        config = self.config
        return read_records(
            config.path,
            split,
            data_files=config.data_files,
            subset=config.subset,
            revision=config.revision,
        )
