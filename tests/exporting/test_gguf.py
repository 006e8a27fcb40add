"""A run as a GGUF file and for Ollama: which programs run, with which words, and what they lack."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from llmft.api.errors import EnvironmentFault, RecipeError
from llmft.cli.main import main
from llmft.exporting import gguf, ollama
from llmft.exporting.folders import LlamaCpp, export
from llmft.inference.trained import trained_stage
from tests.exporting.llama_cpp_folder import llama_cpp_folder


@pytest.fixture
def programs(tmp_path) -> Path:
    return llama_cpp_folder(tmp_path / "llama.cpp")


def facts(folder: Path) -> dict:
    (file,) = folder.glob("*.gguf")
    return json.loads(file.read_text()[4:]) | {"file": file.name}


def test_the_merged_model_is_converted_by_the_programs_that_are_named(
    lora_run, programs, tmp_path, capsys
):
    words = ["export", str(lora_run), "--to", "gguf", "--output", str(tmp_path / "out")]
    assert main([*words, "--llama-cpp", str(programs)]) == 0
    made = facts(tmp_path / "out")
    assert made["type"] == "F32"  # as the base's files
    assert made["file"] == "tiny-F32.gguf"
    assert made["name"] == "tiny"
    said = capsys.readouterr().out
    assert f"use it: llama-server --model {tmp_path}/out/tiny-F32.gguf --jinja" in said
    card = (tmp_path / "out" / "README.md").read_text()
    assert "llama-server --model tiny-F32.gguf --jinja" in card
    assert 'library_name: "gguf"' in card
    assert not [p for p in (tmp_path / "out").iterdir() if p.is_dir()]  # what was merged is gone


@pytest.mark.parametrize(("asked", "kind", "converted"), [
    ("q4_k_m", "Q4_K_M", "F32"), ("Q5_K", "Q5_K_M", "F32"), ("Q8_0", "Q8_0", None),
    ("bf16", "BF16", None),
])  # fmt: skip
def test_types_have_llama_cpps_names(asked, kind, converted, trained, programs, tmp_path):
    made = export(trained, "gguf", tmp_path / "out", LlamaCpp(programs, asked))
    found = facts(made.folder)
    assert (found["type"], found.get("from")) == (kind, converted)
    assert found["file"] == f"tiny-{kind}.gguf"
    assert made.error is not None


def test_rows_that_fit_no_block_of_a_type_are_told(lora_run, programs, tmp_path, capsys):
    """llama.cpp's K types hold rows in blocks of 256 numbers; of others it takes another type."""
    said = (
        "2 of the model's 20 tensors have rows of 64, 96 numbers, which are no multiple of 256:"
        " llama.cpp gave them the types Q5_0, Q8_0"
    )
    words = ["export", str(lora_run), "--to", "gguf", "--llama-cpp", str(programs)]
    for kind in ("Q4_K_M", "Q4_0"):
        asked = [*words, "--quantization", kind, "--output", str(tmp_path / kind)]
        assert main(asked) == 0
        told = f"note: {said}" in capsys.readouterr().out
        card = (tmp_path / kind / "README.md").read_text()
        assert (told, said in card) == ((kind == "Q4_K_M"),) * 2


def test_the_merged_model_has_the_precision_of_the_file(trained, programs, tmp_path, monkeypatch):
    asked = []
    whole = gguf.merge
    monkeypatch.setattr(gguf, "merge", lambda *a, **k: asked.append(k["dtype"]) or whole(*a, **k))
    for kind in ("BF16", "Q4_0"):
        export(trained, "gguf", tmp_path / kind, LlamaCpp(programs, kind))
    assert asked == ["bfloat16", "float32"]


def test_programs_are_found_on_path_and_never_in_the_working_folder(
    trained, programs, tmp_path, monkeypatch
):
    monkeypatch.chdir(programs)
    monkeypatch.setenv("PATH", f".:{programs}:")
    with pytest.raises(EnvironmentFault, match=r"E216.*not on PATH.*--llama-cpp"):
        export(trained, "gguf", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    (programs / "convert_hf_to_gguf.py").chmod(0o755)
    export(trained, "gguf", tmp_path / "out")
    assert facts(tmp_path / "out")["type"] == "F32"


def test_what_is_missing_is_told_before_anything_is_merged(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "merge", None)
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/usr/bin")
    bare = llama_cpp_folder(tmp_path / "bare", quantiser=False)
    for asked, said in (
        (LlamaCpp(tmp_path), "holds no convert_hf_to_gguf.py"),
        (LlamaCpp(bare, "Q4_K_M"), r"llama-quantize is neither .*pip\s+install llama-cpp-python"),
    ):
        with pytest.raises(EnvironmentFault, match=said):
            export(trained, "gguf", tmp_path / "out", asked)
    with pytest.raises(RecipeError, match=r"no type 'Q4_K_N'.*Q4_K_M"):
        export(trained, "gguf", tmp_path / "out", LlamaCpp(bare, "Q4_K_N"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("variable", "code", "said"), [
    ("CONVERTER_FAILS", "E216", "failed with code 1: Model TinyForCausalLM is not supported"),
    ("CONVERTER_LACKS", "E206", "needs the package 'a_package_that_is_not_there'.*pip install"),
])  # fmt: skip
def test_a_converter_that_fails_is_a_fault_with_its_last_line(
    variable, code, said, trained, programs, tmp_path, monkeypatch
):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(EnvironmentFault, match=rf"{code}.*{said}"):
        export(trained, "gguf", tmp_path / "out", LlamaCpp(programs))
    assert list(tmp_path.iterdir()) == [programs]  # nothing is left behind


def test_a_file_adds_a_bos_only_where_training_had_one(
    trained, chat_run, programs, tmp_path, monkeypatch
):
    """Plain text is read with the tokenizer's BOS; this chat template writes none."""
    chat = trained_stage(chat_run)
    assert not gguf.wants_bos(trained)  # this tokenizer adds none at all
    for stage in (trained, chat):
        stage.base.tokenizer.bos_token = "<s>"
    monkeypatch.setattr(gguf, "_adds_bos", lambda tokenizer: True)
    assert gguf.wants_bos(trained)
    export(trained, "gguf", tmp_path / "plain", LlamaCpp(programs))
    assert facts(tmp_path / "plain")["adds_bos"]
    assert not gguf.wants_bos(chat)
    export(chat, "gguf", tmp_path / "chat", LlamaCpp(programs))
    assert not facts(tmp_path / "chat")["adds_bos"]
    bare = llama_cpp_folder(tmp_path / "bare", scripts=False)
    with pytest.raises(EnvironmentFault, match="writes no BOS"):
        export(chat, "gguf", tmp_path / "other", LlamaCpp(bare))


def test_ollama_gets_the_template_the_stops_and_the_settings(chat_run, programs, tmp_path, capsys):
    words = ["export", str(chat_run), "--to", "ollama", "--output", str(tmp_path / "out")]
    assert main([*words, "--llama-cpp", str(programs), "--quantization", "Q8_0"]) == 0
    written = (tmp_path / "out" / "Modelfile").read_text()
    assert written.startswith('FROM ./tiny-Q8_0.gguf\nTEMPLATE """{{ range $i, $_ := .Messages }}')
    assert "<user>{{ end }}{{ .Content }}\n<assistant>" in written
    base = trained_stage(chat_run).base
    for end in base.answer_ends:
        assert f'PARAMETER stop "{base.tokenizer.decode([end])}"' in written
    assert "PARAMETER repeat_penalty 1.0\n" in written
    said = capsys.readouterr().out
    assert shlex.join(["ollama", "create", "tiny-q8_0", "--file"]) in said
    assert "are joined by Ollama" in said


def test_a_run_on_single_questions_has_their_form_in_the_template(trained, programs, tmp_path):
    made = export(trained, "ollama", tmp_path / "out", LlamaCpp(programs))
    written = (made.folder / "Modelfile").read_text()
    assert '{{ if eq .Role "user" }}{{ if $last }}{{ .Content }}{{ end }}{{ end }}' in written
    assert "single questions" in made.notes[0]


def test_a_template_that_tokenises_otherwise_is_refused(chat_run, monkeypatch):
    stage = trained_stage(chat_run)
    assert ollama.derive(stage, adds_bos=False).template
    monkeypatch.setattr(type(stage.encoder), "prompt_ids", lambda *_: [1, 2, 3])
    with pytest.raises(RecipeError, match="other tokens for a conversation"):
        ollama.derive(stage, adds_bos=False)


def test_sampling_goes_along_where_the_model_samples():
    assert ollama.parameters({"temperature": 0.6}) == {"repeat_penalty": 1.0}
    asked = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05}
    assert ollama.parameters(asked) == {"repeat_penalty": 1.05, "temperature": 0.6, "top_k": 20}


def test_options_of_llama_cpp_are_for_its_formats(lora_run, tmp_path, capsys):
    words = ["export", str(lora_run), "--to", "peft", "--output", str(tmp_path / "out")]
    assert main([*words, "--quantization", "Q8_0"]) == 2
    assert "--quantization is for --to gguf" in capsys.readouterr().err
    assert main([*words, "--llama-cpp", str(tmp_path)]) == 2
