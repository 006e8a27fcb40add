"""Files of tasks for lm-evaluation-harness are looked at, and not run."""

from __future__ import annotations

import pytest

from llmft.api.errors import DataError, TrustError
from llmft.evaluation.harness.task_files import task_files

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {rows}}}}}
output_type: multiple_choice
"""


def write(folder, name: str, more: str = "", rows: str = "none.json") -> None:
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, rows=rows) + more)


def names(paths) -> list[str]:
    return [path.name for path in paths]


def test_files_are_those_of_the_tasks_that_are_asked_for(tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text("{}")
    for file in ("mine", "theirs"):
        (tmp_path / f"{file}.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "common.yaml").write_text("process_docs: !function mine.docs\n")
    write(tmp_path, "one", "include: common.yaml\ntag: few\n", rows=str(rows))
    write(tmp_path, "two", "tag: [few, more]\n")
    write(tmp_path, "other", "process_results: !function theirs.score\n")
    (tmp_path / "all.yaml").write_text("group: all\ntask: [two, {task: other}]\n")

    found = task_files(str(tmp_path), ["one"])
    assert names(found.yaml) == ["common.yaml", "one.yaml"]
    assert (names(found.code), names(found.data)) == (["mine.py"], ["rows.json"])
    assert found.complete
    assert names(task_files(str(tmp_path), ["few"]).yaml) == ["common.yaml", "one.yaml", "two.yaml"]
    of_group = task_files(str(tmp_path), ["all"])
    assert names(of_group.yaml) == ["all.yaml", "other.yaml", "two.yaml"]
    assert names(of_group.code) == ["theirs.py"]
    assert not task_files(str(tmp_path), ["one", "arc_easy"]).complete


def test_lists_in_lists_name_no_task(tmp_path):
    write(tmp_path, "one")
    (tmp_path / "all.yaml").write_text("group: all\ntask: [[one, one], {task: [[one]]}, one]\n")
    assert names(task_files(str(tmp_path), ["all"]).yaml) == ["all.yaml", "one.yaml"]


@pytest.mark.parametrize("function", ["os.system", "subprocess.run", "nothing", "sub.dir.docs"])
def test_a_function_of_no_file_beside_the_task_is_refused(tmp_path, function):
    write(tmp_path, "one", f"process_docs: !function {function}\n")
    with pytest.raises(TrustError, match=f"E607.*'{function}'"):
        task_files(str(tmp_path), ["one"])


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match=r"E107.*no folder"):
        task_files(str(tmp_path / "none"), ["one"])
