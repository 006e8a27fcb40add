"""What we derive for Ollama writes conversations as the chat template does, also in Go itself."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmft.api.errors import LlmftError, RecipeError
from llmft.data.chat_format import ChatFormat
from llmft.data.encoding import Encoder
from llmft.exporting.go_template import Frame, literal, quoted, run, write
from llmft.exporting.ollama import frame_of

pytest.importorskip("trl")
_path = Path(__file__).parents[2] / "benchmarks" / "chat_templates.py"
_spec = importlib.util.spec_from_file_location("chat_templates_of_ollama", _path)
program = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = program
_spec.loader.exec_module(program)
TEMPLATES = program.templates()

ODD = 'a {{ "b" }} }} """ \\ ü ｜ \u00a0\t\x07 🙂 {'
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    {"role": "user", "content": 'Say {{ .Content }}:\n"""x""" ü 🙂'},
    {"role": "assistant", "content": "It is {{ 4 }}."},
    {"role": "user", "content": "And\nnow?"},
]
TALKS = [TALK[:1], TALK, [*TALK, TALK[1], TALK[2]]]


def encoder(template: str) -> Encoder:
    made = program.tokenizer_for("chatml", template, "bytes")
    return Encoder(made, None, ChatFormat())


def same(frame: Frame, encoder: Encoder, bos: str = "") -> None:
    template = write(frame)
    talks = [*TALKS, *([SYSTEM, *talk] for talk in TALKS)] if frame.system else TALKS
    for talk in talks:
        assert bos + run(template, talk) == encoder.render(tuple(talk), answer_next=True)


# These take content as a list of parts, for images.
REFUSED = {"idefics3", "llava_next", "smolvlm"}


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_templates_of_real_models_are_stated_or_refused_with_the_reason(name):
    made = program.encoder_for(name, program.tokenizer_for(name, TEMPLATES[name], "bytes"))
    if name not in REFUSED:
        frame = frame_of(made, "")
        same(frame, made)
        assert frame.system == (name != "gemma")
        return
    with pytest.raises(RecipeError, match="cannot state this chat template") as caught:
        frame_of(made, "")
    assert "--to gguf" in caught.value.faults[0].fix


def test_the_text_around_messages_may_be_any():
    odd = "{% raw %}" + ODD + "{% endraw %}"
    template = (
        "{% for m in messages %}" + odd + "{{ m.role }}: {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}" + odd + "{% endif %}"
    )
    made = encoder(template)
    frame = frame_of(made, "")
    assert frame.between["user", None] == ODD
    same(frame, made)
    assert '"""' not in write(frame)  # it would end the template in a Modelfile
    assert all(c == "\n" or " " <= c <= "~" for c in write(frame))


def test_a_bos_that_the_runtime_adds_is_left_out():
    made = encoder("<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[answer]")
    same(frame_of(made, "<s>"), made, bos="<s>")
    assert "<s>" not in write(frame_of(made, "<s>"))


@pytest.mark.parametrize(("template", "why"), [
    ("{{ messages[-1].content }}", "moves or changes the user text"),
    ("{% for m in messages %}{{ m.role }} {{ m.content | upper }}{% endfor %}", "changes the user"),
    ("{% for m in messages %}{{ loop.index }}.{{ m.content }}{% endfor %}", "in one place and"),
    ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "twice"),
])  # fmt: skip
def test_what_a_go_template_cannot_state_is_refused(template, why):
    with pytest.raises((RecipeError, LlmftError), match=why):
        frame_of(encoder(template), "")


def test_a_system_text_that_the_template_refuses_is_left_out_and_the_head_stays():
    made = encoder(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{% if loop.first %}<head>{% endif %}{{ m.role }}:{{ m.content }};{% endfor %}"
    )
    frame = frame_of(made, "")
    assert not frame.system
    assert run(write(frame), [SYSTEM, *TALK[:1]]) == f"<head>user:{TALK[0]['content']};"


def test_of_single_questions_the_last_is_put():
    frame = Frame({(None, "user"): "Q: ", ("user", None): "\nA:"}, only_last=True)
    assert run(write(frame), [SYSTEM, *TALK]) == "Q: And\nnow?\nA:"


PROGRAM = """package main
import ("encoding/json"; "os"; "text/template")
type Message struct { Role, Content string }
func main() {
  var asked struct { Template string; Messages []*Message }
  if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil { panic(err) }
  made := template.Must(template.New("").Option("missingkey=zero").Parse(asked.Template))
  values := map[string]any{"Messages": asked.Messages, "System": "", "Response": ""}
  if err := made.Execute(os.Stdout, values); err != nil { panic(err) }
}
"""


@pytest.mark.extended
def test_go_itself_writes_the_same(tmp_path):
    if shutil.which("go") is None:
        pytest.skip("there is no Go here")
    (tmp_path / "main.go").write_text(PROGRAM)
    command = ["go", "build", "-o", "written", "main.go"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    frames = [Frame({(None, "user"): ODD, ("user", None): ODD}, only_last=True)]
    for name in ("cohere", "gemma", "llama3", "qwen3"):
        made = program.encoder_for(name, program.tokenizer_for(name, TEMPLATES[name], "bytes"))
        frames.append(frame_of(made, ""))
    keys = [(None, "system"), (None, "user"), ("system", "user"), ("user", "assistant"),
            ("assistant", "user"), ("user", None)]  # fmt: skip
    frames.append(Frame({key: f"{n}{ODD}{n}" for n, key in enumerate(keys)}))
    frames.append(Frame(dict.fromkeys(keys, ODD), system=False))
    for frame in frames:
        for talk in [*TALKS, *([SYSTEM, *talk] for talk in TALKS), TALK[:2]]:
            asked = json.dumps({"Template": write(frame), "Messages": talk})
            done = subprocess.run(
                [tmp_path / "written"], input=asked, capture_output=True, text=True, check=True
            )
            assert done.stdout == run(write(frame), talk)


def test_literals_are_escaped_as_go_reads_them():
    assert literal("plain\ntext") == "plain\ntext"
    assert literal("{{ü") == '{{ "\\u007b\\u007b" }}{{ "\\u00fc" }}'
    assert quoted('"\\🙂') == '"\\"\\\\\\U0001f642"'
