"""An adapter sent to the hub: what arrives, and that a hub that fails takes nothing away."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmft.api.errors import LlmftError, RecipeError
from llmft.api.text_metrics import shown_score
from llmft.cli.main import main
from llmft.exporting import ollama
from llmft.hub import upload
from llmft.hub.sources import remarks as hub_remarks
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.system import fsio
from tests.exporting.llama_cpp_folder import llama_cpp_folder
from tests.hub.fake_hub import TOKEN


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "log.txt"
    }


def sent(hub) -> dict[str, bytes]:
    return hub.files("model", "me/tiny-adapter", "main")[1]


def test_a_run_sends_its_adapter_with_a_card_that_names_no_place_of_this_machine(
    hub, run, capsys, model_folder, rows_file, tmp_path
):
    summary = run()
    said = capsys.readouterr().out
    assert (
        "note: after the run, 'sft' is uploaded to the hub: me/tiny-adapter (private), at " in said
    )
    assert f"at {hub.url.removeprefix('http://')}\n" in said
    assert f"note: sent to the hub: {hub.url}/me/tiny-adapter" in said
    assert said.index("after the run") < said.index("stage sft:")
    files = sent(hub)
    adapter = summary.folder / "stages" / "sft" / "adapter"
    assert set(files) == {
        "README.md", "adapter_config.json", "adapter_model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    assert files["adapter_model.safetensors"] == weights
    assert hub.private == {"me/tiny-adapter": True}
    assert hub.tokens == {f"Bearer {TOKEN}", ""}  # the storage is asked without
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == model_folder.name
    assert config["r"] == 2
    for name, data in files.items():
        for secret in (tmp_path, model_folder, rows_file.parent, Path.home(), TOKEN):
            assert str(secret).encode() not in data, name
        assert b"private-place" not in data
        assert b"secret-project" not in data
    card = files["README.md"].decode()
    result = json.loads((summary.folder / "stages" / "sft" / "result.json").read_text())
    loss = [
        shown_score(result["scores"][when]["loss"], 4) for when in ("before", "after", "difference")
    ]
    assert loss[0].startswith(f"{result['before']['loss']:.4f} [")
    assert f"| loss | {loss[0]} | {loss[1]} | {loss[2]} |" in card
    assert "`rows.jsonl`" in card
    assert 'PeftModel.from_pretrained(model, "me/tiny-adapter")' in card
    assert "r: 2" in card
    assert "Unknown: nobody has stated one" in card
    assert "output_dir" not in card
    lock = json.loads((summary.folder / "lock.json").read_text())
    assert f"| torch | {lock['packages']['torch']} |" in card
    written = b"".join(p.read_bytes() for p in summary.folder.rglob("*") if p.is_file())
    assert TOKEN.encode() not in written


def test_what_was_sent_loads_in_plain_peft(hub, finished, model_folder, tmp_path):
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    assert main(["push", str(finished)]) == 0
    place = tmp_path / "fetched"
    place.mkdir()
    for name, data in sent(hub).items():
        (place / name).write_bytes(data)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), place)
    loaded = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
    saved = load_file(place / "adapter_model.safetensors")
    assert saved
    for name, tensor in saved.items():
        assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("401", "not sent to the hub: the hub refuses the login (401) (hf auth login); "),
        ("403", "not sent to the hub: the hub refuses the login (403) (hf auth login); "),
        ("500", "not sent to the hub: the hub answered 500; "),
        ("hang", "not sent to the hub: the hub did not answer within 1 seconds; "),
        ("refused", "not sent to the hub: the hub cannot be reached: ConnectError"),
    ],
)
def test_a_hub_that_fails_loses_nothing_and_its_command_works_later(
    hub, finished, monkeypatch, capsys, mode, said
):
    before, notes = tree(finished), []
    job = load_recipe(finished / "resolved.yaml", Registry.discover())
    monkeypatch.setattr(upload, "_ANSWER_SECONDS", 1.0 if mode == "hang" else 10.0)
    if mode == "refused":
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    hub.mode = mode
    began = time.monotonic()
    upload.push_after_run(job, finished, notes.append)
    assert time.monotonic() - began < 10
    assert len(notes) == 1
    assert notes[0].startswith(said)
    assert notes[0].endswith(
        f"; the adapter is safe in the run folder; again: llmft push {finished}"
    )
    assert tree(finished) == before
    assert TOKEN not in notes[0]
    if mode == "401":  # the command that was told
        hub.mode = ""
        assert main(["push", str(finished)]) == 0
        assert f"sent to the hub: {hub.url}/me/tiny-adapter" in capsys.readouterr().out
        assert "adapter_model.safetensors" in sent(hub)
        assert tree(finished) == before


def test_a_hub_or_a_network_without_xet_gets_the_adapter_over_plain_http(
    hub, finished, monkeypatch, capsys
):
    import huggingface_hub.constants as constants

    pytest.importorskip("hf_xet")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    assert main(["push", str(finished)]) == 0
    assert any("xet-write-token" in asked for asked in hub.asked)
    weights = (finished / "stages/sft/adapter/adapter_model.safetensors").read_bytes()
    assert sent(hub)["adapter_model.safetensors"] == weights


def test_n1_a_hub_that_hangs_in_mid_upload_is_left_in_time(hub, finished, monkeypatch, capsys):
    hub.mode = "hang:/commit/"
    notes = []
    job = load_recipe(finished / "resolved.yaml", Registry.discover())
    recipe = job.recipe
    assert recipe.push_to_hub is not None
    asked = recipe.push_to_hub.model_copy(update={"timeout_seconds": 1.0})
    job = replace(job, recipe=recipe.model_copy(update={"push_to_hub": asked}))
    upload.push_after_run(job, finished, notes.append)
    assert notes[0].startswith("not sent to the hub: the hub did not answer within 1 seconds; ")


def test_the_command_fails_as_the_machine_does_and_says_why(hub, finished, capsys):
    hub.mode = "500"
    assert main(["push", str(finished)]) == 4
    assert "error[E208] not sent to the hub: the hub answered 500" in capsys.readouterr().err
    hub.mode = ""
    assert main(["push", str(finished), "--stage", "nowhere"]) == 6
    assert "no finished stage 'nowhere'" in capsys.readouterr().err
    assert main(["push", str(finished), "--repo-id", "a/b/c"]) == 2
    assert main(["push", str(finished), "--repo-id", "me/other", "--public", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["repo_id"] == "me/other"
    assert hub.private["me/other"] is False


def test_an_adapter_that_shall_be_private_is_never_sent_to_a_public_place(hub, finished, capsys):
    hub.add("model", "me/open", {}, "0" * 40)
    hub.private["me/open"] = False
    assert main(["push", str(finished), "--repo-id", "me/open"]) == 4
    assert (
        "'me/open' is public, and the recipe asks for a private repository"
        in capsys.readouterr().err
    )
    assert hub.files("model", "me/open", "main") == ("0" * 40, {})


def test_a_bare_name_is_the_users_own(hub, finished, capsys):
    for _ in range(2):  # made, and there already
        assert main(["push", str(finished), "--repo-id", "bare"]) == 0
        assert capsys.readouterr().out == f"sent to the hub: {hub.url}/me/bare\n"
    card = hub.files("model", "me/bare", "main")[1]["README.md"].decode()
    assert 'PeftModel.from_pretrained(model, "me/bare")' in card


def test_nobody_logged_in_asks_the_hub_nothing(hub, finished, monkeypatch, tmp_path, capsys):
    import huggingface_hub.constants as constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    hub.asked.clear()
    assert main(["push", str(finished)]) == 4
    assert (
        "not sent to the hub: nobody is logged in — fix: hf auth login" in capsys.readouterr().err
    )
    assert hub.asked == []


def test_a_run_whose_recipe_sends_nothing_is_sent_where_the_command_says(
    hub, finished, tmp_path, capsys
):
    place = tmp_path / "copy"
    shutil.copytree(finished, place)
    resolved = place / "resolved.yaml"
    head, _, tail = resolved.read_text().partition("push_to_hub:\n")
    rest = [line for line in tail.splitlines(keepends=True) if not line.startswith(" ")]
    resolved.write_text(f"{head}{''.join(rest)}")
    assert main(["push", str(place)]) == 2
    assert hub.asked == []
    assert "add --repo-id my-name/my-adapter" in capsys.readouterr().err


def test_of_a_run_that_is_not_finished_no_earlier_stage_is_sent_unasked(
    hub, finished, tmp_path, capsys
):
    path = tmp_path / "two.yaml"
    head, _, tail = (finished / "recipe.yaml").read_text().partition("trackers:")
    again = head[head.index("  - name: sft") :].replace("name: sft", "name: more")
    again = again.replace("adapter: {method: lora, r: 2}", "start_from: sft")
    path.write_text(f"{head}{again}trackers:{tail}")
    runs = tmp_path / "runs"
    assert main(["run", str(path), "--until", "sft", "--output-dir", str(runs)]) == 0
    (place,) = (runs / "tiny").iterdir()
    capsys.readouterr()
    assert main(["push", str(place)]) == 6
    assert "no finished stage 'more' (finished: sft)" in capsys.readouterr().err
    assert hub.asked == []
    assert main(["push", str(place), "--stage", "sft"]) == 0


def test_a_stage_that_is_not_there_is_found_when_the_recipe_is_read(run):
    with pytest.raises(LlmftError, match="no stage is called 'dpo'"):
        run(more="push_to_hub: {repo_id: me/x, stage: dpo}\n")


COLLECT = """\
  - name: collect
    start_from: sft
    task: {method: collect, num_return_sequences: 2, max_new_tokens: 2}
    data: {method: prompts, path: rows.jsonl}
"""


def with_a_task_at_the_end(recipe: str, stage: str) -> str:
    """Return a recipe of one stage, sft, with one more that trains nothing."""
    head, _, tail = recipe.partition("trackers:")
    tail = tail.partition("push_to_hub:")[0]
    return f"{head}{COLLECT}trackers:{tail}push_to_hub: {{repo_id: me/x, stage: {stage}}}\n"


def test_the_last_stage_that_trains_is_sent_and_not_a_task_after_it(finished, tmp_path):
    path = tmp_path / "task.yaml"
    text = (finished / "recipe.yaml").read_text("utf-8")
    path.write_text(with_a_task_at_the_end(text, "last"), "utf-8")
    recipe = load_recipe(path, Registry.discover()).recipe
    assert any("'sft' is uploaded" in remark for remark in hub_remarks(recipe))
    path.write_text(with_a_task_at_the_end(text, "collect"), "utf-8")
    with pytest.raises(LlmftError, match=r"'collect' trains nothing \(have: sft\)"):
        load_recipe(path, Registry.discover())


def test_a_tokenizer_arrives_as_it_is(hub, finished, tmp_path, capsys):
    """Its tokens may look like paths of a machine, or like keys."""
    place = tmp_path / "copy"
    shutil.copytree(finished, place)
    adapter = place / "stages" / "sft" / "adapter"
    told = json.loads((adapter / "tokenizer.json").read_text())
    told["added_tokens"] += [{"content": text} for text in ("/", "~", "/home", "hf_" + "a" * 34)]
    (adapter / "tokenizer.json").write_text(json.dumps(told))
    manifest = json.loads((adapter / "manifest.json").read_text())
    data = (adapter / "tokenizer.json").read_bytes()
    manifest["sha256"]["tokenizer.json"] = hashlib.sha256(data).hexdigest()
    fsio.write_json(adapter / "manifest.json", manifest)
    assert main(["push", str(place)]) == 0
    assert sent(hub)["tokenizer.json"] == data


def test_the_merged_model_is_sent_with_a_card_that_loads_it(
    hub, finished, model_folder, rows_file, tmp_path, capsys
):
    from transformers import AutoModelForCausalLM

    before = tree(finished)
    words = ["push", str(finished), "--repo-id", "me/whole"]
    assert main([*words, "--merged"]) == 0
    said = capsys.readouterr()
    host = hub.url.removeprefix("http://")
    assert f"sending 'sft', merged, to the hub at {host}: me/whole (private)\n" in said.err
    assert f"sent to the hub: {hub.url}/me/whole\n" in said.out
    assert "merged, against the run's own model, log-probabilities of" in said.out
    files = hub.files("model", "me/whole", "main")[1]
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(files)
    assert not {"manifest.json", "adapter_config.json"} & set(files)
    for name, data in files.items():
        for secret in (tmp_path, finished, model_folder, rows_file.parent, Path.home(), TOKEN):
            assert str(secret).encode() not in data, name
    card = files["README.md"].decode()
    assert 'folder = "me/whole"\n' in card
    assert "`rows.jsonl`" in card
    assert "| loss | " in card
    assert "r: 2" in card
    place = tmp_path / "fetched"
    place.mkdir()
    for name, data in files.items():
        (place / name).write_bytes(data)
    AutoModelForCausalLM.from_pretrained(place)
    assert main(["verify", "export", str(finished), str(place), "--prompts", "2"]) == 0
    assert tree(finished) == before
    assert not [p for p in finished.parent.iterdir() if p.name.startswith(".")]


@pytest.fixture
def programs(tmp_path):
    return llama_cpp_folder(tmp_path / "llama.cpp")


def test_a_gguf_file_is_sent_with_what_ollama_reads_beside_it(hub, finished, programs, capsys):
    words = ["push", str(finished), "--repo-id", "whole-gguf", "--gguf", "q4_k_m"]
    assert main([*words, "--llama-cpp", str(programs), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["url"] == f"{hub.url}/me/whole-gguf"
    assert "llama.cpp gave them the types Q5_0, Q8_0" in told["notes"][0]
    files = hub.files("model", "me/whole-gguf", "main")[1]
    assert set(files) == {"README.md", "tiny-Q4_K_M.gguf", "Modelfile", "template", "params"}
    assert json.loads(files["tiny-Q4_K_M.gguf"][4:])["type"] == "Q4_K_M"
    assert f'TEMPLATE """{files["template"].decode()}"""' in files["Modelfile"].decode()
    params = json.loads(files["params"])
    assert params["repeat_penalty"] == 1.0
    for stop in params["stop"]:
        assert f'PARAMETER stop "{stop}"' in files["Modelfile"].decode()
    card = files["README.md"].decode()
    assert (
        "llama-server --hf-repo me/whole-gguf --hf-file tiny-Q4_K_M.gguf --jinja\n"
        "ollama run hf.co/me/whole-gguf:Q4_K_M\n" in card
    )
    assert 'library_name: "gguf"' in card


def test_a_gguf_file_that_ollama_cannot_ask_is_sent_for_llama_cpp_alone(
    hub, finished, programs, monkeypatch, capsys
):
    def refuse(*words, **more):
        raise RecipeError("E090", "it writes a message twice")

    monkeypatch.setattr(ollama, "derive", refuse)
    words = ["push", str(finished), "--repo-id", "me/bare-gguf", "--gguf", "Q8_0"]
    assert main([*words, "--llama-cpp", str(programs)]) == 0
    assert "note: nothing is sent for Ollama: it writes a message twice" in capsys.readouterr().out
    files = hub.files("model", "me/bare-gguf", "main")[1]
    assert set(files) == {"README.md", "tiny-Q8_0.gguf"}
    assert "ollama" not in files["README.md"].decode()


@pytest.mark.parametrize(("words", "said"), [
    (["--merged"], "add --repo-id my-name/my-model"),
    (["--gguf", "Q8_0"], "add --repo-id my-name/my-model"),
    (["--merged", "--gguf", "Q8_0", "--repo-id", "me/x"], "two models"),
    (["--llama-cpp", "x"], "--llama-cpp is for --gguf"),
    (["--gguf", "Q4_K_N", "--repo-id", "me/x"], "no type 'Q4_K_N'"),
])  # fmt: skip
def test_what_cannot_be_sent_whole_is_refused_before_the_hub_is_asked(
    hub, finished, words, said, capsys
):
    assert main(["push", str(finished), *words]) == 2
    assert said in capsys.readouterr().err
    assert hub.asked == []


def test_a_whole_model_is_not_sent_beside_an_adapter_nor_by_nobody(
    hub, finished, monkeypatch, tmp_path, capsys
):
    """transformers would load the adapter on top of the model that has it inside."""
    import huggingface_hub.constants as constants

    assert main(["push", str(finished), "--repo-id", "me/both"]) == 0
    before = hub.files("model", "me/both", "main")
    words = ["push", str(finished), "--repo-id", "me/both", "--merged"]
    assert main(words) == 4
    assert "'me/both' has the file adapter_config.json" in capsys.readouterr().err
    assert hub.files("model", "me/both", "main") == before
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    hub.asked.clear()
    assert main(words) == 4
    assert "nobody is logged in" in capsys.readouterr().err
    assert hub.asked == []


@pytest.mark.parametrize("repo_id", ["a/b/c", "/a", "a b", "-x/y", "", "../up"])
def test_a_repository_name_that_cannot_be_is_refused(run, repo_id):
    with pytest.raises(LlmftError):
        run(more=f"push_to_hub: {{repo_id: {json.dumps(repo_id)}}}\n")


class Elsewhere(BaseHTTPRequestHandler):
    """A server that nobody chose: it keeps the keys it is sent, and answers an empty object."""

    keys: list[str | None] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.keys.append(self.headers.get("Authorization"))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_HEAD = do_PUT = do_POST

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def elsewhere():
    handler = type("Handler", (Elsewhere,), {"keys": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        handler.url = f"http://localhost:{http.server_port}"
        yield handler
        http.shutdown()


def test_a_redirect_to_another_host_carries_no_key(hub, elsewhere, finished, capsys):
    hub.mode = f"redirect:{elsewhere.url}"
    assert main(["push", str(finished), "--repo-id", "me/tiny-adapter"]) == 4
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert elsewhere.keys
    assert set(elsewhere.keys) == {None}
    assert TOKEN not in capsys.readouterr().err


def test_an_address_that_the_hub_hands_out_for_a_file_gets_no_key(hub, elsewhere, finished, capsys):
    hub.verify = f"{elsewhere.url}/verify"
    assert main(["push", str(finished), "--repo-id", "me/tiny-adapter"]) == 0
    assert set(elsewhere.keys) == {None}


def test_files_of_the_working_folder_do_not_move_the_hub(
    hub, elsewhere, finished, monkeypatch, tmp_path
):
    for name, text in {
        ".env": f"HF_ENDPOINT={elsewhere.url}\nHTTP_PROXY={elsewhere.url}\n",
        ".netrc": f"machine {hub.url.removeprefix('http://')} login a password b\n",
        "pip.conf": f"[global]\nindex-url = {elsewhere.url}\n",
        ".huggingface/config": f"endpoint={elsewhere.url}\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    assert main(["push", str(finished), "--repo-id", "me/tiny-adapter"]) == 0
    assert elsewhere.keys == []
    assert hub.tokens == {f"Bearer {TOKEN}", ""}
