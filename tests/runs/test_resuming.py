"""Edits, changed ground, locks and signals: what a resumed run looks at before it goes on."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmft.api.errors import CheckpointError, EnvironmentFault, Interrupted, RecipeError
from llmft.api.train_settings import TrainSettings
from llmft.modeling.base_model import BaseModel
from llmft.recipes.load import load_recipe
from llmft.recipes.recipe import Recipe, Stage
from llmft.registry.registry import Registry
from llmft.runs import locking
from llmft.runs.edits import EDITS, edits_between
from llmft.runs.resuming import (
    changed_environment,
    clear_unfinished,
    examine,
    newest_run,
    trim_metrics,
    unfinished_run,
)
from llmft.runs.run_folder import write_inputs
from llmft.system import fsio
from llmft.system.signals import leave_on_signal, noted_interrupts, stop_requests
from tests.end_to_end.checkpoints.harness import tiny_recipe

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"


def test_c5_every_field_has_a_class():
    """A new setting fails here until somebody has thought about what a resumed run does with it."""
    fields = set(Recipe.model_fields)
    fields |= {f"stages[].{name}" for name in Stage.model_fields if name != "train"}
    fields |= {f"stages[].train.{name}" for name in TrainSettings.model_fields}
    fields |= {"stages[].data.max_row_mb", "stages[].data.max_file_mb"}  # limits, not training data
    assert set(EDITS) == fields


def test_c5_the_page_tells_the_same():
    told = dict(re.findall(r"^\| `([^`]+)` \| (\w+) \|", PAGE.read_text("utf-8"), re.MULTILINE))
    assert told == dict(EDITS)


@pytest.fixture
def recipe(model_folder, rows_file) -> dict:
    return tiny_recipe(model_folder, rows_file)


@pytest.fixture
def load(recipe, tmp_path):
    def load(change=None) -> Recipe:
        data = copy.deepcopy(recipe)
        if change:
            change(data)
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(data))
        return load_recipe(path, Registry.discover()).recipe

    return load


@pytest.mark.parametrize(("change", "told", "kind"), [
    (lambda d: d.update(seed=4), "seed: 17 -> 4", "refused"),
    (lambda d: d["stages"][0]["adapter"].update(r=8), "stages.sft.adapter.r: 2 -> 8", "refused"),
    (lambda d: d["stages"][0]["adapter"].update(target_modules=["q_proj"]),
     "stages.sft.adapter.target_modules: all-linear -> ['q_proj']", "refused"),
    (lambda d: d["stages"][0]["train"].update(learning_rate=1.0),
     "stages.sft.train.learning_rate: 0.01 -> 1.0", "applied"),
    (lambda d: d["stages"][0]["train"].update(save_steps=3),
     "stages.sft.train.save_steps: 2 -> 3", "allowed"),
    (lambda d: d["stages"][0].update(name="other"), "stages: ['sft'] -> ['other']", "applied"),
    (lambda d: d["stages"][0].update(evaluate={}), "stages.sft.evaluate: None -> {", "refused"),
    (lambda d: d.update(trackers=[]), "trackers: [{", "allowed"),
    (lambda d: d["model"].update(dtype="bfloat16"), "model.dtype: float32 -> bfloat16", "refused"),
])  # fmt: skip
def test_c5_an_edit_is_named_and_classed(load, change, told, kind):
    (edit,) = edits_between(load(), load(change))
    assert str(edit).startswith(told)
    assert edit.kind == kind


def test_an_unchanged_recipe_has_no_edits(load):
    assert edits_between(load(), load()) == []


@pytest.fixture
def lock() -> dict:
    from llmft.api.model_settings import ModelSource
    from llmft.runs.provenance import lock_of

    plugin = {"kind": "adapter", "method": "x", "distribution": "d", "version": "1", "sha256": "a"}
    return lock_of(17, BaseModel(ModelSource(path="embedded:model")), [plugin])


def test_c9_other_versions_and_threads_are_told(lock):
    assert changed_environment(lock, copy.deepcopy(lock)) == []
    now = copy.deepcopy(lock)
    now["packages"]["torch"] = "99.0"
    now["torch_threads"] += 1
    now["device"] = "a GPU"  # c10
    told = changed_environment(lock, now)
    assert told[0] == f"device {lock['device']} -> a GPU"
    assert told[1].startswith("torch_threads ")
    assert told[2] == f"torch {lock['packages']['torch']} -> 99.0"


def test_c9_two_builds_of_one_version_of_torch_are_told_apart(lock, monkeypatch):
    """Some wheels' metadata says 2.13.0 where the build is +cpu or +cu130."""
    import torch

    from llmft.api.model_settings import ModelSource
    from llmft.runs import provenance

    assert lock["packages"]["torch"] == torch.__version__
    monkeypatch.setattr(provenance.metadata, "version", lambda name: "2.13.0")
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    base = BaseModel(ModelSource(path="embedded:model"))
    now = provenance.lock_of(17, base, lock["plugins"])
    assert now["packages"]["torch"] == "2.13.0+cu130"
    told = changed_environment(lock, {**lock, "packages": lock["packages"] | {"torch": "x+cu130"}})
    assert told == [f"torch {lock['packages']['torch']} -> x+cu130"]


def test_c9_other_code_of_llmft_under_one_version_is_told(lock):
    now = {**copy.deepcopy(lock), "code": "f" * 64}
    assert changed_environment(lock, now) == [f"llmft's own code {lock['code'][:8]} -> ffffffff"]
    del lock["code"]  # as an earlier llmft wrote it
    assert changed_environment(lock, now) == []


def test_c4_another_base_model_is_refused(lock):
    now = copy.deepcopy(lock)
    now["model"]["sha256"]["model.safetensors"] = "other"
    with pytest.raises(CheckpointError, match=r"E405.*'model\.safetensors' of the model"):
        changed_environment(lock, now)


def test_p4_a_plugin_whose_code_changed_is_refused_and_a_new_version_is_told(lock):
    now = copy.deepcopy(lock)
    now["plugins"][0]["sha256"] = "b"
    with pytest.raises(CheckpointError, match=r"E405.*code of the adapter 'x' \(d\)"):
        changed_environment(lock, now)
    now["plugins"][0]["version"] = "2"
    assert changed_environment(lock, now) == ["adapter x 1 -> 2"]


def test_o1_the_second_process_is_told_who_holds_the_folder(tmp_path):
    with (
        locking.held(tmp_path),
        pytest.raises(EnvironmentFault) as caught,
        locking.held(tmp_path),
    ):
        pass
    fault = caught.value.faults[0]
    assert fault.code == "E204"
    assert f"in use by process {os.getpid()} on " in fault.what
    assert list(tmp_path.iterdir()) == []
    with locking.held(tmp_path) as again:
        assert again.killed is None


def test_o1_t5_a_kill_frees_the_lock_and_leaves_its_trace(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from llmft.runs import locking\n"
        f"with locking.held(Path({str(tmp_path)!r})) as lock:\n"
        "    lock.tell('step 3'); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(EnvironmentFault, match=f"E204.*process {holder.pid}"),
        locking.held(tmp_path),
    ):
        pass
    holder.kill()
    holder.wait()
    with locking.held(tmp_path) as lock:
        assert lock.killed["pid"] == holder.pid
        assert lock.killed["at"] == "step 3"


def test_t6_a_signal_leaves_through_code_that_catches_every_exception():
    def guarded() -> None:
        with leave_on_signal(), suppress(Exception):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped by SIGTERM") as caught:
        guarded()
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_t6_even_a_second_signal_waits_for_a_save():
    saved = []

    def save() -> None:
        with leave_on_signal(), stop_requests() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            with stop.waiting():
                os.kill(os.getpid(), signal.SIGTERM)
                saved.append(stop.signal)

    with pytest.raises(Interrupted):  # the loop asks at a step's end; who does not ask leaves here
        save()
    assert saved == [signal.SIGTERM]


def test_t6_a_second_signal_leaves_at_once():
    program = (
        "import os, signal; from llmft.system.signals import stop_requests\n"
        "with stop_requests():\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('stays', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('still here', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "stays\n")


def test_a_run_folder_without_resume_is_refused_before_anything_is_read():
    from llmft.cli.commands.run import run_recipe_file

    with pytest.raises(RecipeError, match=r"E090.*a new run makes its own folder"):
        run_recipe_file("none.yaml", [], quiet=True, as_json=False, run_folder="runs/x")


def test_metrics_beyond_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    phases = [(0, "score_before"), (2, "train"), (4, "train"), (6, "train"), (6, "score_after")]
    lines = [json.dumps({"step": step, "phase": phase}) for step, phase in phases]
    path.write_text("\n".join(lines) + '\n{"step": 7, "pha')
    trim_metrics(tmp_path, 4)
    assert path.read_text() == "\n".join(lines[1:3]) + "\n"
    trim_metrics(tmp_path, 0)
    assert path.read_text() == ""


def test_lines_of_another_shape_in_the_metrics_are_dropped(tmp_path):
    path, ours = tmp_path / "metrics.jsonl", json.dumps({"step": 2, "phase": "train"})
    others = ["[" * 100_000, "7", '{"phase": [], "step": 1}', '{"phase": "train", "step": "x"}']
    path.write_text("\n".join([*others, ours]) + "\n")
    trim_metrics(tmp_path, 4)
    assert path.read_text() == f"{ours}\n"


@pytest.fixture
def interruptible():
    """Ctrl-C acts, also where a shell has started the tests in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_t7_an_interrupt_that_a_library_swallows_is_no_bug_of_ours():
    def half_imported() -> None:
        with noted_interrupts():
            with suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            raise ModuleNotFoundError

    with pytest.raises(Interrupted, match="interrupted") as caught:
        half_imported()
    assert caught.value.exit_code == 130


@pytest.mark.usefixtures("interruptible")
def test_t7_an_interrupt_that_a_library_swallows_is_kept_until_the_run_begins():
    def late() -> None:
        with noted_interrupts():
            with suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            with leave_on_signal():
                pytest.fail("it goes on")

    with pytest.raises(Interrupted, match="stopped by SIGINT"):
        late()
    with leave_on_signal():  # nothing is left of it
        pass


def test_t6_a_signal_that_a_library_swallows_stops_training_at_the_end_of_a_step():
    def run() -> None:
        with leave_on_signal():
            with suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)
            with stop_requests() as stop:
                asked.append(stop.signal)

    asked = []
    with pytest.raises(Interrupted):
        run()
    assert asked == [signal.SIGTERM]


@pytest.mark.parametrize("damage", [b"\xff\x00\n", b"[1]\n", b'{"step": 1, "pha'])
def test_metrics_that_are_damaged_are_dropped(tmp_path, damage):
    whole = b'{"stage": "s", "step": 1, "phase": "train"}\n'
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(whole + damage)
    trim_metrics(tmp_path, 1)
    assert path.read_bytes() == whole


def run_folder(parent: Path, name: str, finished: bool) -> Path:
    folder = parent / "tiny" / name
    (folder / "stages" / "only").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"stages": ["only"]}))
    if finished:
        result = {"produces": "policy", "metrics": {}}
        (folder / "stages" / "only" / "result.json").write_text(json.dumps(result))
    return folder


@pytest.mark.parametrize(("names", "finished", "newest"), [
    (["20260101-000000-ffffffff", "20260101-000000-2-00000000"], "", 1),
    (["20260101-000000-2-ffffffff", "20260101-000000-10-00000000"], "", 1),
    (["20260101-000000-10-00000000", "20260101-000001-ffffffff"], "", 1),
    (["20260101-000000-2-00000000", "20260101-000000-12345678"], "", 0),
    (["20260101-000000-00000000", "20260102-000000-00000000"], "1", 0),
    (["20260101-000000-00000000", "20260102-000000-00000000"], "01", 1),
])  # fmt: skip
def test_the_newest_unfinished_run_is_resumed_whatever_its_hash(names, finished, newest, tmp_path):
    """Runs that begin within one second are numbered: the second attempt, the tenth ..."""
    folders = [run_folder(tmp_path, name, str(at) in finished) for at, name in enumerate(names)]
    job = SimpleNamespace(recipe=SimpleNamespace(output_dir=str(tmp_path), name="tiny"))
    assert newest_run(job) == folders[newest].resolve()
    left = set(range(len(names))) - {int(at) for at in finished}
    assert unfinished_run(job) == (folders[newest].resolve() if left else None)


def test_without_a_run_there_is_nothing_to_resume(tmp_path):
    job = SimpleNamespace(recipe=SimpleNamespace(output_dir=str(tmp_path), name="tiny"))
    with pytest.raises(CheckpointError, match=r"E402.*no run in .*tiny"):
        newest_run(job)
    assert unfinished_run(job) is None


def test_what_a_kill_left_of_an_adapter_is_taken_away(tmp_path):
    for name in ("adapter", ".staging-adapter-x", "checkpoints"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.json").write_text("{}")
    clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    clear_unfinished(tmp_path)


@pytest.fixture
def job_of(recipe, tmp_path):
    """Return a job of two stages; what is given is set in the second."""

    def job_of(**adapter):
        data = copy.deepcopy(recipe)
        second = copy.deepcopy(data["stages"][0]) | {"name": "more"}
        second["adapter"] |= adapter
        data["stages"].append(second)
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(data, indent=1))
        return load_recipe(path, Registry.discover())

    return job_of


@pytest.fixture
def begun(job_of, tmp_path):
    """The folder of a run of these stages, of which none has begun."""
    folder = tmp_path / "run"
    for name in ("sft", "more"):
        (folder / "stages" / name).mkdir(parents=True)
    job = job_of()
    write_inputs(folder, job, BaseModel(job.recipe.model))
    return folder


def finish(folder: Path, *names: str) -> None:
    for name in names:
        place = folder / "stages" / name
        with fsio.staged_folder(place / "adapter", folder.name):
            pass
        fsio.write_json(place / "result.json", {"produces": "policy", "steps": 3})


def test_a_run_is_finished_when_all_its_stages_are(begun, job_of):
    job = job_of()
    for done, names in ((False, ()), (False, ("sft",)), (True, ("more",))):
        finish(begun, *names)
        assert examine(job, begun).finished is done
    assert not examine(job_of(r=8), begun).finished, "a stage runs again with the edit"


def test_c5_an_edit_that_cannot_be_taken_over_is_placed_in_the_recipe(begun, job_of):
    assert [edit.kind for edit in examine(job_of(r=8), begun).edits] == ["refused"]
    (begun / "stages/more/checkpoints/step-2").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"E404.*cannot continue with this one") as caught:
        examine(job_of(r=8), begun)
    (fault,) = caught.value.faults
    assert fault.path == "stages[1].adapter.r"
    assert fault.place.source.strip().startswith('"r": 8')
