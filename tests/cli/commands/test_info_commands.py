"""Each light command: what a person reads, and what `--json` gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmft import __version__
from llmft.cli.commands import environment, output
from llmft.cli.main import main


def test_version(llmft):
    assert llmft("version") == (0, f"llmft {__version__}\n", "")
    assert llmft("version", "--json").data == {"ok": True, "version": __version__}


def test_no_command_prints_the_help(llmft):
    ran = llmft()
    assert ran.code == 0
    assert "list-plugins" in ran.out
    assert ran == llmft("--help")


def test_help_cuts_no_command_short(llmft):
    assert "..." not in llmft("--help").out.partition("Commands:")[2]


def test_validate_names_the_stages_of_a_good_recipe(llmft, recipe):
    ran = llmft("validate", recipe)
    assert ran == (0, f"{recipe}: ok (sft: lora x sft on triviaqa)\n", "")


def test_validate_gives_json(llmft, recipe):
    [row] = llmft("validate", recipe, "--set", "name=other", "--json").data["recipes"]
    assert row["name"] == "other"
    assert row["stages"] == [
        {
            "name": "sft",
            "adapter": "lora",
            "alignment": "sft",
            "task": None,
            "data": "triviaqa",
            "remarks": [],
        }
    ]


def test_validate_reports_the_faults_of_all_recipes_at_once(llmft, recipe, tmp_path):
    for name in ("one", "two"):
        text = (tmp_path / "recipe.yaml").read_text().replace("r: 4", "rr: 4")
        (tmp_path / f"{name}.yaml").write_text(text)
    bad = [str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")]
    ran = llmft("validate", recipe, *bad)
    assert ran.code == 2
    assert ran.out == ""
    heads = [line for line in ran.err.splitlines() if line.startswith("error")]
    assert [line.split()[1] for line in heads] == [f"{path}:7:29" for path in bad]
    errors = llmft("validate", *bad, "--json").data["errors"]
    assert [error["file"] for error in errors] == bad
    assert {error["line"] for error in errors} == {7}


def test_list_plugins_shows_every_builtin(llmft):
    ran = llmft("list-plugins")
    rows = [line.split()[:3] for line in ran.out.splitlines()]
    assert ["adapter", "lora", "ok"] in rows
    assert ["tracker", "console", "ok"] in rows
    rows = llmft("list-plugins", "--json").data["plugins"]
    assert {"lora", "sft", "console"} <= {row["method"] for row in rows}
    assert all(row["summary"] for row in rows if row["distribution"] == "llmft")


def test_list_plugins_gives_the_reason_of_a_broken_one(llmft, tmp_path, monkeypatch):
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[llmft.adapters]\nacme = acme_broken\n")
    (tmp_path / "acme_broken.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    ran = llmft("list-plugins")
    assert ran.code == 0
    [line] = [
        line for line in ran.out.splitlines() if line.startswith("adapter") and "acme" in line
    ]
    assert "broken" in line
    assert "no_such_module_at_all" in line
    report = llmft("doctor", "--json").data
    assert any("acme" in problem and "broken" in problem for problem in report["problems"])


def test_list_recipes_names_what_run_takes(llmft):
    rows = llmft("list-recipes", "--json").data["recipes"]
    text = llmft("list-recipes").out
    for row in rows:
        assert row["name"] in text
        assert llmft("validate", row["name"]).code == 0


def test_show_lists_every_field_with_default_bound_and_meaning(llmft):
    [shown] = llmft("show", "lora", "--json").data["methods"]
    rows = {row["key"]: row for row in shown["fields"]}
    assert shown["kind"] == "adapter"
    assert rows["method"]["type"] == "lora"
    assert rows["r"]["type"] == "int"
    assert rows["r"]["default"] == "8"
    assert "1 to" in rows["r"]["bounds"]
    assert all(row["description"] for row in rows.values())
    text = llmft("show", "lora").out
    assert all(key in text for key in rows)
    assert "mergeable" in text


def test_show_gives_every_kind_that_has_the_name(llmft):
    assert [m["kind"] for m in llmft("show", "jsonl", "--json").data["methods"]] == [
        "dataset",
        "tracker",
    ]
    [only] = llmft("show", "jsonl", "--kind", "tracker", "--json").data["methods"]
    assert only["kind"] == "tracker"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("show", "lroa"), "did you mean 'lora'"),
        (("show", "zzzzzzzz"), "llmft list-plugins"),
        (("show", "lora", "--kind", "tracker"), "no tracker is called 'lora'"),
        (("show", "lora", "--kind", "adaptor"), "'adaptor' is not one of 'adapter'"),
    ],
)
def test_show_answers_a_wrong_name_with_the_way_out(llmft, args, says):
    ran = llmft(*args)
    assert ran.code == 2
    assert says in ran.err


def test_schema_is_json_with_and_without_the_flag(llmft):
    ran = llmft("schema")
    assert ran.code == 0
    assert json.loads(ran.out)["title"] == "llmft recipe"
    assert llmft("schema", "--json") == ran


def test_explain_tells_what_a_code_means_and_how_to_mend_it(llmft):
    [found] = llmft("explain", "E012", "--json").data["codes"]
    text = llmft("explain", "E012").out
    assert found["code"] == "E012"
    for key in ("title", "meaning", "mend"):
        assert found[key]
        assert found[key] in text


@pytest.mark.parametrize("spelled", ["e012", "12", "012", "E12"])
def test_explain_is_lenient_about_how_a_code_is_written(llmft, spelled):
    assert llmft("explain", spelled) == llmft("explain", "E012")


def test_explain_without_a_code_lists_all_of_them(llmft):
    codes = [item["code"] for item in llmft("explain", "--json").data["codes"]]
    lines = llmft("explain").out.splitlines()
    assert [line.split()[0] for line in lines] == codes
    assert {"E001", "E090", "E504", "E900"} <= set(codes)


def test_explain_says_so_where_there_is_no_such_code(llmft):
    ran = llmft("explain", "E9999")
    assert ran.code == 2
    assert "no error has the code 'E9999'" in ran.err


def test_doctor_shows_the_machine_the_packages_and_the_methods(llmft):
    ran = llmft("doctor")
    assert ran.code == 0
    for word in ("python", "cores", "memory", "torch", "lora", "problems:"):
        assert word in ran.out
    report = llmft("doctor", "--json").data
    assert report["machine"]["cores"] >= 1
    assert report["packages"]["torch"]
    assert {"lora", "sft"} <= {row["method"] for row in report["methods"]}


def test_doctor_asks_torch_where_it_is_asked_to(llmft, monkeypatch):
    monkeypatch.setattr(environment, "torch_devices", lambda: {"cuda": ["a GPU of torch's"]})
    assert "a GPU of torch's" in llmft("doctor", "--torch").out
    assert "a GPU of torch's" in llmft("doctor", "--deep").out  # its former name
    assert "a GPU of torch's" not in llmft("doctor").out
    for command in ("doctor", "validate"):
        assert "--deep" not in llmft(command, "--help").out


def test_the_version_is_an_option_too(llmft):
    assert llmft("--version").out == llmft("version").out == f"llmft {__version__}\n"


ROWS = [
    (
        "compare_adapters",
        "Compares the six adapters on the embedded model.",
        "recipes/compare.yaml",
    ),
    ("quickstart", "Teaches trivia.", "recipes/quickstart.yaml"),
]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_on_a_terminal_breaks_between_words_only(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(output.sys.stdout.__class__, "isatty", lambda self: True)
    text = output.table(("recipe", "what it does", "file"), ROWS)
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    for row in ROWS:
        for word in " ".join(row).split():
            assert word in words
    assert ("  what it does: " in text) == (width == 40)  # too narrow for columns


def test_a_table_that_is_piped_has_one_line_a_row():
    lines = output.table(("recipe", "what it does", "file"), ROWS).splitlines()
    assert [line.split()[0] for line in lines] == ["recipe", "compare_adapters", "quickstart"]


def test_an_explanation_is_wrapped_on_a_terminal_and_not_in_a_pipe(llmft, monkeypatch):
    assert max(map(len, llmft("explain", "E040").out.splitlines())) > 100
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(output, "terminal_width", lambda stream: 60)
    assert max(map(len, llmft("explain", "E040").out.splitlines())) <= 60


def test_doctor_names_a_missing_package_and_how_to_install_it(llmft, monkeypatch):
    monkeypatch.setattr(environment, "versions", lambda: {"llmft": "0.1.0", "peft": None})
    assert "package 'peft' is missing — fix: pip install 'peft'" in llmft("doctor").out


def test_doctor_reads_the_driver_without_torch(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Some GPU, 81920 MiB'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert environment.accelerators() == ["Some GPU, 81920 MiB"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert environment.accelerators() == []


def test_a_path_that_no_system_takes_is_the_users_mistake(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    for words in (
        ["new-plugin", "mine", "--kind", "reward", "--output", "x" * 5000],
        ["new-plugin", "mine", "--kind", "reward", "--output", "a\0b"],
        ["new-plugin", "mine", "--kind", "reward", "--output", "/proc/x"],
        ["new-plugin", "mine", "--kind", "reward", "--output", "loop/x"],
        ["new", "a.yaml", "--model", "embedded:model", "--data", "~nobody-is-called-so/a.jsonl"],
        ["new", "a.yaml", "--model", "embedded:model", "--data", f"{'x' * 5000}.jsonl"],
    ):
        assert main(words) in (2, 4), words
        assert "internal error" not in capsys.readouterr().err


def test_a_new_plugin_is_not_written_through_a_link_that_nobody_named(
    capsys, tmp_path, monkeypatch
):
    outside, here = tmp_path / "outside", tmp_path / "here"
    outside.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    for target in (outside, outside / "new"):
        Path("llmft-mine").unlink(missing_ok=True)
        Path("llmft-mine").symlink_to(target)
        assert main(["new-plugin", "mine", "--kind", "reward"]) == 2
        assert "exists already" in capsys.readouterr().err
    assert not any(outside.iterdir())
    assert main(["new-plugin", "mine", "--kind", "reward", "--output", "a; b"]) == 0
    assert "cd 'a; b' && pip" in capsys.readouterr().out
