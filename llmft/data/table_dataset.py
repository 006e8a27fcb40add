"""Data sets whose records stand in files or on the hub: the settings and the reading they share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from typing import Any, TypeVar

from pydantic import Field, model_validator

from llmft.api import Dataset, DatasetConfig
from llmft.api.settings import Line
from llmft.api.splits import split_parts
from llmft.data.data_files import files_of, names_files, size_and_ends
from llmft.data.tables import ReadLimits, SampleBy, Unreadable, read_records
from llmft.system import hub_commits


class TableConfig(DatasetConfig):
    """Where the records of a data set are."""

    path: Line | None = Field(
        None,
        description="a file, a pattern of files such as rows/*.jsonl, a folder with <split> files,"
        " a hub id, or 'embedded:<name>'",
    )
    subset: Line | None = Field(None, description="the hub data set's configuration")
    revision: Line | None = Field(None, description="the hub data set's commit, tag or branch")
    data_files: dict[Line, Line] | None = Field(
        None,
        min_length=1,
        max_length=20,
        description="a local file, or a pattern of files, for each split",
    )
    sample_by: SampleBy = Field(
        "line",
        description="what is one text of a .txt file, whose column is called 'text': a line, a"
        " paragraph (separated by empty lines), or the whole file; datasets' name",
    )

    max_row_mb: int = Field(
        64, ge=1, le=4096, description="the largest record of a local file, unpacked, in MB"
    )
    max_file_mb: int = Field(
        512,
        ge=1,
        le=2**20,
        description="the largest .json file, unpacked, in MB; other formats are read in pieces",
    )

    @model_validator(mode="after")
    def _real_line_breaks(self) -> TableConfig:
        for text in _texts_in(self):
            if "{" in text and (found := _LITERAL.search(text)):
                sign = found.group()
                raise ValueError(
                    f"'{text[:60]}' holds a backslash and the letter {sign[1]}, as single"
                    f" quotes keep them; write the template in double quotes for a"
                    f" {'line break' if sign[1] == 'n' else 'tab'}"
                )
        return self

    @model_validator(mode="after")
    def _one_source(self) -> TableConfig:
        usual = type(self).model_fields["path"].default
        if self.path is None and self.data_files is None:
            raise ValueError("set either path or data_files")
        if self.data_files and self.path not in (None, usual):
            raise ValueError("path and data_files exclude each other; keep one")
        return self


# LaTeX's commands that begin so are meant as they stand.
_LITERAL = re.compile(r"\\n(?!abla|ewline|eg|eq?\b|oindent|ot\b|u\b|i\b)|\\t(?![a-z])")
_FIELD = re.compile(r"\{([^{}]*?)\??\}")
_PLACES = {"path", "data_files", "subset", "revision"}


def _texts_in(config: TableConfig) -> Iterator[str]:
    """Yield each text of the settings, other than where the records are."""
    left: list[Any] = [config.model_dump(exclude=_PLACES)]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            left.extend(value.values())
        elif isinstance(value, list | tuple):
            left.extend(value)


def _flat(record: Mapping[str, Any], named: Set[str], above: str = "") -> dict[str, Any]:
    """Return a record with the columns inside others that are named, such as a.b, as its own."""
    made: dict[str, Any] = {}
    for key, value in record.items():
        name = f"{above}.{key}" if above else str(key)
        inside = isinstance(value, Mapping) and any(n.startswith(f"{name}.") for n in named)
        if inside:
            made.update(_flat(value, named, name))
        if not inside or name in named:
            made[name] = value
    return made


C = TypeVar("C", bound=TableConfig)


class TableDataset(Dataset[C]):
    """A data set that reads its records from where its settings say; `row` is left to derive."""

    def is_local(self) -> bool:
        """Return whether the settings name files, not a data set on the hub."""
        return self.config.data_files is not None or names_files(self.config.path or "")

    def pin(self) -> str:
        """Return the commit of a hub data set; of local files their names, sizes and ends."""
        config = self.config
        if not self.is_local():
            commit = hub_commits.of_dataset(config.path or "", config.revision)
            return f"{config.path} {config.subset} {config.split} {commit or config.revision}"
        names = {part.name for part in split_parts(config.split)}
        files = [f for one in sorted(names) for f in files_of(config.path, one, config.data_files)]
        return f"{config.split} {[(file.name, *size_and_ends(file)) for file in files]}"

    def records(self, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the raw records of a split, each with its origin."""
        config = self.config
        found = read_records(
            config.path,
            split,
            data_files=config.data_files,
            subset=config.subset,
            revision=config.revision,
            limits=ReadLimits(config.max_row_mb, config.max_file_mb),
            sample_by=config.sample_by,
            streaming=config.streaming,
            keep_unreadable=True,
        )
        texts = list(_texts_in(config))
        named = {*texts, *(name for text in texts for name in _FIELD.findall(text))}
        nested = {name for name in named if "." in name.strip(".")}
        heads = {name.partition(".")[0] for name in nested}
        for origin, record in found:
            deep = not isinstance(record, Unreadable) and any(
                isinstance(record.get(head), Mapping) for head in heads
            )
            yield origin, _flat(record, named) if deep else record
