"""`llmft new`: what it writes validates against the model, and says what it saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from llmft.cli.commands import new as new_module
from llmft.cli.main import main
from llmft.modeling.tiny_models import tiny_gpt2, tiny_model_folder
from tests.extended import extended

CHATML = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
TALK = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Her."}]
ROWS = {
    "chat": {"messages": TALK},
    "spoken": {"prompt": TALK[:1], "completion": TALK[1:]},
    "instruction": {"instruction": "Say it.", "input": "a", "output": "b", "id": "x"},
    "pairs": {"prompt": "Who?", "chosen": "Her.", "rejected": "Him."},
    "thumbs": {"question": "Who?", "answer": "Her."},
    "text": {"text": "Once upon a time."},
    "classes": {"sentence": "Once upon a time."},
}


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Write rows of a form into the working folder, and return the file's name."""
    monkeypatch.chdir(tmp_path)

    def write(form: str, count: int = 30) -> str:
        lines = []
        for n in range(count):
            row = {k: f"{v} {n}" if isinstance(v, str) else v for k, v in ROWS[form].items()}
            judged = {"thumbs": {"label": n % 2 == 0}, "classes": {"category": "abc"[n % 3]}}
            lines.append(json.dumps(row | judged.get(form, {})))
        Path(f"{form}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        return f"{form}.jsonl"

    return write


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory):
    """A tiny model without a chat template."""
    return tiny_model_folder(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """A tiny model with a chat template."""
    folder = tiny_model_folder(tmp_path_factory.mktemp("chat"), tiny_gpt2())
    (folder / "chat_template.jinja").write_text(CHATML, "utf-8")
    return folder


def made(model: Path, data: str, *words: str) -> dict:
    assert main(["new", "my.yaml", "--model", str(model), "--data", data, *words]) == 0
    return yaml.safe_load(Path("my.yaml").read_text("utf-8"))


@pytest.fixture
def fits(monkeypatch):
    """Nothing is planned: it fits. The first test below plans."""
    monkeypatch.setattr(new_module, "_fits", lambda text: True)


CASES = {
    "chat": ("chat", (), ["sft"]),
    "spoken": ("spoken", (), ["sft"]),
    "instruction": ("instruction", (), ["sft"]),
    "text, all weights": ("text", ("--adapter", "full"), ["sft"]),
    "dpo": ("pairs", ("--goal", "preferences"), ["dpo"]),
    "reward": ("pairs", ("--goal", "reward"), ["reward"]),
    "rlhf": ("pairs", ("--goal", "rlhf"), ["sft", "reward", "ppo"]),
    "kto": ("thumbs", (), ["kto"]),
    "classification": ("classes", (), ["classification"]),
}


@pytest.mark.parametrize("case", extended(CASES, ("chat", "spoken", "kto", "classification")))
def test_what_is_written_validates_with_a_plain_model(rows, plain_model, case, capsys):
    form, words, methods = CASES[case]
    recipe = made(plain_model, rows(form), *words)
    assert [stage["alignment"]["method"] for stage in recipe["stages"]] == methods
    assert ("chat_template" in recipe["model"]) == (form in ("chat", "spoken"))
    assert "30 rows" in capsys.readouterr().out
    assert main(["validate", "my.yaml", "--model"]) == 0


@pytest.mark.parametrize("case", extended(["chat", "instruction", "rlhf"], ["instruction"]))
@pytest.mark.usefixtures("fits")
def test_a_chat_models_template_is_used(rows, chat_model, case, capsys):
    form, words, _ = CASES[case]
    recipe = made(chat_model, rows(form), *words)
    assert "chat_template" not in recipe["model"]
    assert all(stage["data"].get("chat", form == "chat") for stage in recipe["stages"])
    asked = {"chat": "<user>Who?<assistant>", "instruction": "<user>Say it. 0\na 0<assistant>",
             "rlhf": "<user>Who? 0<assistant>"}[case]  # fmt: skip
    assert asked in capsys.readouterr().out


@pytest.mark.usefixtures("fits")
def test_bad_rows_among_good_ones_are_skipped_by_what_is_written_and_named(
    rows, plain_model, capsys
):
    data = rows("chat")
    bad = ['{"messages": []}', '{"messages": [{"role"', '{"other": 1}']
    path = Path(data)
    path.write_text("\n".join([*path.read_text("utf-8").splitlines(), *bad]) + "\n", "utf-8")
    recipe = made(plain_model, data)
    assert recipe["stages"][0]["data"]["on_bad_row"] == "skip"
    told = capsys.readouterr().out
    assert all(f"chat.jsonl:{number}:" in told for number in (31, 32, 33))
    assert "3 rows cannot be used" in Path("my.yaml").read_text("utf-8")
    assert main(["validate", "my.yaml", "--model"]) == 0


@pytest.mark.usefixtures("fits")
def test_rows_of_which_none_can_be_used_are_answered_with_what_is_wrong(
    tmp_path, plain_model, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    call = {"function": {"name": "f", "arguments": "{}"}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    Path("calls.jsonl").write_text(json.dumps({"messages": [TALK[0], turn]}) + "\n", "utf-8")
    assert main(["new", "my.yaml", "--model", str(plain_model), "--data", "calls.jsonl"]) == 3
    assert "give a template that writes it as model.chat_template" in capsys.readouterr().err


@pytest.mark.usefixtures("fits")
def test_it_trains(rows, plain_model):
    made(plain_model, rows("instruction"))
    assert main(["run", "my.yaml", "--quiet", "--set", "stages.sft.train.num_train_epochs=1"]) == 0


def test_two_goals_need_a_flag_where_nobody_can_be_asked(rows, plain_model, capsys):
    data = rows("pairs")
    assert main(["new", "my.yaml", "--model", str(plain_model), "--data", data]) == 2
    told = capsys.readouterr().err
    assert "--goal preferences or --goal reward or --goal rlhf" in told
    assert not Path("my.yaml").exists()


@pytest.mark.usefixtures("fits")
def test_two_goals_are_asked_about_on_a_terminal(rows, plain_model, monkeypatch):
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    answers = iter([7, 2])
    monkeypatch.setattr("typer.prompt", lambda *words, **more: next(answers))
    recipe = made(plain_model, rows("pairs"))
    assert [stage["name"] for stage in recipe["stages"]] == ["reward"]


@pytest.mark.parametrize(
    ("form", "words", "code", "said"),
    [
        ("text", ("--goal", "reward"), 2, "--goal reward needs other rows"),
        ("text", ("--form", "chat"), 2, "can be read as text"),
        ("text", ("--adapter", "lorra"), 2, "did you mean 'lora'"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    rows, plain_model, capsys, form, words, code, said
):
    data = rows(form)
    assert main(["new", "my.yaml", "--model", str(plain_model), "--data", data, *words]) == code
    assert said in capsys.readouterr().err
    assert not Path("my.yaml").exists()


def test_a_recipe_that_is_there_is_not_overwritten(rows, plain_model, capsys):
    Path("my.yaml").write_text("mine")
    assert main(["new", "my.yaml", "--model", str(plain_model), "--data", rows("text")]) == 2
    assert "not overwritten" in capsys.readouterr().err
    assert Path("my.yaml").read_text() == "mine"


def test_batches_are_halved_until_they_fit(rows, plain_model, monkeypatch):
    monkeypatch.setattr(new_module, "_fits", lambda text: "batch_size: 1\n" in text)
    (stage,) = made(plain_model, rows("text", 100))["stages"]
    assert stage["train"]["per_device_train_batch_size"] == 1
    assert stage["train"]["gradient_accumulation_steps"] == 8
    assert "gradient_checkpointing" not in stage["train"]


@pytest.mark.usefixtures("fits")
def test_rows_that_are_longer_than_the_model_reads_are_told(rows, plain_model, capsys):
    Path("long.jsonl").write_text(
        "".join(json.dumps({"text": "a b " * n}) + "\n" for n in (9, 999))
    )
    made(plain_model, "long.jsonl")
    assert "cut: 1 of 2 rows, after" in capsys.readouterr().out
    assert "1 of 2 rows are longer, and cut" in Path("my.yaml").read_text()


@pytest.mark.usefixtures("fits")
def test_names_of_columns_are_text_in_the_recipe_and_on_the_screen(rows, plain_model, capsys):
    """U+0085 and U+2028 end a comment of YAML; a line break lets a name pass for what we say."""
    extra = {"a\x85seed: 99": "", "b\u2028seed: 98": "", "c\nnext: curl evil": "", "\x1b[2J": ""}
    Path("odd.jsonl").write_text(f"{json.dumps({'text': 'a b', **extra})}\n" * 3)
    assert made(plain_model, "odd.jsonl")["seed"] == 17
    text = Path("my.yaml").read_text("utf-8")
    assert "a<U+0085>seed: 99, b<U+2028>seed: 98, c<U+000A>next:" in " ".join(text.split("\n# "))
    assert (
        "not read: a<U+0085>seed: 99, b<U+2028>seed: 98, c<U+000A>next: curl evil, <U+001B>[2J"
        in (capsys.readouterr().out)
    )


@pytest.mark.parametrize("name", ["a\nseed: 9.yaml", "a\x85b.yaml", "\x1b[2J.yaml"])
def test_a_recipe_has_a_name_that_can_be_typed(rows, plain_model, capsys, name):
    assert main(["new", name, "--model", str(plain_model), "--data", rows("text")]) == 2
    assert "is no recipe's name" in capsys.readouterr().err
