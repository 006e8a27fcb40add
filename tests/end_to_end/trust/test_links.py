"""Nothing outside is written: no link in a stranger's folder is followed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmft.api.errors import RecipeError, TrustError
from llmft.cli.main import main
from llmft.ranking.log import rater_log
from llmft.runs.run_folder import new_run_folder
from llmft.system import fsio
from tests.odd_files import KINDS, SECRET, in_time, place

SAMPLE = {"prompt": "p", "completions": ["a", "b"], "answers": []}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file of the user's that no command names."""
    path = tmp_path / "mine" / "secret.txt"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bob.jsonl", "bob.lock", "ann.jsonl"])
def test_a_folder_of_ratings_from_elsewhere_changes_no_other_file(
    tmp_path, target, kind, name, capsys, monkeypatch
):
    (tmp_path / "s.jsonl").write_text(json.dumps(SAMPLE) + "\n")
    place(kind, tmp_path / "ratings" / name, target)
    monkeypatch.setattr("sys.stdin", io.StringIO("1\nq\n"))
    code = in_time(
        lambda: main(["rank", str(tmp_path / "s.jsonl"), "--rater", "bob", "--terminal"])
    )
    assert code == 8
    assert name in capsys.readouterr().err
    assert target.read_bytes() == SECRET
    assert [p.name for p in target.parent.iterdir()] == ["secret.txt"]


def test_a_ratings_folder_that_is_a_link_is_refused(tmp_path, target, capsys):
    (tmp_path / "s.jsonl").write_text(json.dumps(SAMPLE) + "\n")
    (tmp_path / "ratings").symlink_to(target.parent)
    assert main(["rank", str(tmp_path / "s.jsonl"), "--rater", "bob", "--terminal"]) == 8
    with pytest.raises(TrustError, match="a link"), rater_log(tmp_path / "ratings", "bob"):
        pass
    assert [p.name for p in target.parent.iterdir()] == ["secret.txt"]


@pytest.mark.parametrize(
    "name", ["log.txt", "lock", "progress.json", "stages/sft/metrics.jsonl",
             "stages/sft/checkpoints", "logs/x", "wandb", "stages/more/deep/file"],
)  # fmt: skip
def test_a_run_folder_from_elsewhere_changes_no_other_file(
    finished, target, name, capsys, monkeypatch
):
    recipe = finished / "recipe.yaml"
    path = finished / name
    if path.is_dir():
        path.rename(path.with_name("aside"))
    path.unlink(missing_ok=True)
    place("link", path, target)
    for words in (
        ["run", str(recipe), str(finished), "--resume"],
        ["generate", str(finished), "a"],
        ["score", str(finished), "x.jsonl"],
        ["rank", str(finished), "--status"],
        ["push", str(finished), "--repo-id", "me/x"],
    ):
        assert main(words) == 8, words
        assert f"{name}' is a link" in capsys.readouterr().err
    assert target.read_bytes() == SECRET


def test_outputs_are_not_overwritten(tmp_path, capsys):
    (tmp_path / "s.jsonl").write_text(json.dumps(SAMPLE) + "\n")
    out = tmp_path / "out.jsonl"
    out.write_bytes(SECRET)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("out.jsonl", "link"):
        assert main(["rank", str(tmp_path / "s.jsonl"), "--export", str(tmp_path / name)]) == 2
        assert "is there already, and is not overwritten" in capsys.readouterr().err
        words = ["score", str(tmp_path), str(tmp_path / "s.jsonl"), "--output"]
        assert main([*words, str(tmp_path / name)]) == 2
    assert out.read_bytes() == SECRET
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(RecipeError, match="is there already"):
        fsio.write_new_jsonl(out, [{"a": 1}])


def test_a_run_is_not_made_through_a_link_below_the_folder_that_was_named(tmp_path, target):
    recipe = SimpleNamespace(output_dir=str(tmp_path / "runs"), name="t", resolved=dict)
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")  # the user's own
    assert new_run_folder(recipe).parent == tmp_path / "disk/t"
    (tmp_path / "disk/t").rename(tmp_path / "disk/u")
    (tmp_path / "disk/t").symlink_to(target.parent)
    with pytest.raises(TrustError, match="is a link"):
        new_run_folder(recipe)
    assert [p.name for p in target.parent.iterdir()] == ["secret.txt"]
