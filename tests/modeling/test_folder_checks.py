"""What a model folder from elsewhere can hold, and the fault that it gives."""

from __future__ import annotations

import json
import os
import shutil
import threading

import pytest

from llmft.api.errors import LlmftError
from llmft.api.model_settings import ModelSource
from llmft.cli.main import main
from llmft.modeling.base_model import BaseModel, locate_model
from llmft.system.architectures import architecture_of


@pytest.fixture
def folder(tmp_path, model_folder):
    return shutil.copytree(model_folder, tmp_path / "m")


def refusal(folder) -> LlmftError:
    """Return why the folder is refused; fail where that takes long."""
    found: list[BaseException] = []

    def look() -> None:
        try:
            locate_model(str(folder))
            _ = BaseModel(ModelSource(path=str(folder))).tokenizer
            BaseModel(ModelSource(path=str(folder))).load({}, varlen=False)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it hangs"
    assert found, "it is loaded"
    assert isinstance(found[0], LlmftError), repr(found[0])
    return found[0]


def change(folder, name, **settings) -> None:
    path = folder / name
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | settings))


@pytest.mark.parametrize(("settings", "said"), [
    ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
    ({"num_hidden_layers": True}, "num_hidden_layers is true"),
    ({"hidden_size": "64"}, 'hidden_size is "64"'),
    ({"hidden_size": 1e3}, "hidden_size is 1000.0"),
    ({"vocab_size": 0}, "vocab_size is 0"),
    ({"eos_token_id": "x"}, 'eos_token_id is "x"'),
    ({"eos_token_id": [1, "x"]}, "eos_token_id is a list"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is NaN"),
    ({"text_config": {"num_attention_heads": 0}}, "text_config.num_attention_heads is 0"),
])  # fmt: skip
def test_settings_that_cannot_be_are_named(folder, settings, said):
    change(folder, "config.json", **settings)
    error = refusal(folder)
    assert error.faults[0].code == "E201"
    assert f"config.json': {said}" in error.faults[0].what
    assert error.exit_code == 4


@pytest.mark.parametrize(("text", "said"), [
    ("[1]", "holds a list, and a JSON object is wanted"),
    ('"x"', 'holds "x", and a JSON object'),
    ("{", "is not readable JSON"),
    ("[" * 99_999, "is not readable JSON"),
    ('{"eos_token_id": "x"}', 'eos_token_id is "x"'),
    ('{"eos_token_id": -2}', "eos_token_id is -2"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_files_that_are_no_settings_are_named(folder, name, text, said):
    (folder / name).write_text(text)
    error = refusal(folder)
    assert f"{name}'" in error.faults[0].what
    assert said in error.faults[0].what


def test_an_adapters_folder_is_no_base_model(folder):
    change(folder, "adapter_config.json", base_model_name_or_path="x", target_modules="(a+)+$")
    assert refusal(folder).faults[0].code == "E606"


def test_an_adapter_as_a_pickle_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    error = refusal(tmp_path)
    assert error.faults[0].code == "E602"
    assert "an adapter as a pickle" in error.faults[0].what


@pytest.mark.parametrize("name", [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "model.safetensors", "chat_template.jinja", "special_tokens_map.json", "anything",
])  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "device", "link to a pipe"])
def test_pipes_and_devices_are_refused_wherever_they_stand(folder, name, kind):
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(folder.parent / "pipe")
        path.symlink_to(folder.parent / "pipe")
    error = refusal(folder)
    assert error.faults[0].code == "E605"
    assert name in error.faults[0].what
    assert architecture_of(str(folder)) is None or name != "config.json"


def test_the_command_says_so_in_a_line(folder, tmp_path, capsys):
    change(folder, "config.json", num_attention_heads=0)
    (tmp_path / "r.yaml").write_text(json.dumps({
        "recipe": 1, "name": "t", "model": {"path": str(folder)},
        "stages": [{"name": "s", "adapter": {"method": "lora"}, "alignment": {"method": "sft"},
                    "data": {"method": "triviaqa", "path": "embedded:trivia", "limit": 4}}],
    }))  # fmt: skip
    for command in ("run", "plan"):
        assert main([command, str(tmp_path / "r.yaml")]) == 4
        said = capsys.readouterr().err
        assert "num_attention_heads is 0" in said
        assert "Traceback" not in said


def test_an_endless_file_is_not_read(folder):
    os.truncate(folder / "tokenizer.json", 2**40)
    assert "bytes, which no such file has" in refusal(folder).faults[0].what


def test_endless_weights_are_not_opened(folder):
    os.truncate(folder / "model.safetensors", 2**40)
    error = refusal(folder)
    assert error.faults[0].code == "E201"
    assert "its header tells of another size" in error.faults[0].what


@pytest.mark.parametrize("named", [
    [{"name": "../../x", "template": "a"}], [{"name": "a/b", "template": "a"}], {"../x": "a"},
    [{"name": 3, "template": "a"}], [{"name": "a", "template": [1]}], [5], [{"name": ".hidden"}],
])  # fmt: skip
def test_names_of_chat_templates_are_names_of_files(folder, named):
    change(folder, "tokenizer_config.json", chat_template=named)
    error = refusal(folder)
    assert error.faults[0].code == "E201"
    assert "chat template" in error.faults[0].what


def test_a_pipe_among_more_chat_templates_is_refused(folder):
    (folder / "additional_chat_templates").mkdir()
    os.mkfifo(folder / "additional_chat_templates/a.jinja")
    assert refusal(folder).faults[0].code == "E605"


def test_chat_templates_by_usual_names_are_taken(folder):
    several = [{"name": name, "template": "a"} for name in ("default", "tool_use", "rag-2.1")]
    change(folder, "tokenizer_config.json", chat_template=several)
    assert locate_model(str(folder)) == str(folder)


def test_a_run_s_folder_is_told_from_a_model(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(LlmftError, match=r"the folder of a run.*llmft merge .* --output DIR"):
        locate_model(str(tmp_path))
