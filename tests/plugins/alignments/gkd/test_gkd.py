"""Distillation: who writes which answer, what is learnt of it, and a run from recipe to adapter."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from llmft_alignments.gkd import Gkd
from llmft_alignments.gkd.objective import GkdObjective, answer_start, divergences
from pydantic import ValidationError

from llmft.api import Answer, Encoded, OtherModel
from llmft.api.errors import CheckpointError, DataError, EnvironmentFault, RecipeError
from llmft.engine.preflight import preflight
from llmft.engine.session import resume_recipe, run_recipe
from llmft.hub import sources
from llmft.modeling.base_model import BaseModel
from llmft.modeling.divergence import divergence
from llmft.modeling.tiny_models import tiny_llama, tiny_model_folder, tiny_tokenizer
from llmft.planning.planner import plan_recipe
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.runs import provenance, run_folder
from llmft.runs.fingerprint import stage_fingerprint
from llmft.testing import AlignmentContract, measures
from llmft.training.checkpoints import Checkpoints
from tests.composed import composed

TEACHER = {"teacher": {"path": "embedded:model"}}


class TestGkd(AlignmentContract):
    method_class = Gkd
    configs = [TEACHER, {**TEACHER, "lmbda": 1.0, "beta": 0.0}, {**TEACHER, "seq_kd": True}]


@pytest.fixture(autouse=True)
def _one_thread():
    with measures.one_thread():
        yield


def rows(count: int) -> list[Encoded]:
    ids = [(10 + n, 20 + n, 30 + n, 40 + n) for n in range(count)]
    return [Encoded(one, (-100, -100, *one[2:]), f"row {n}") for n, one in enumerate(ids)]


def objective_of(max_length=None, planned=False, seed=5, **options):
    """Return an objective, and what was asked of its sampler: (model, prompts, seed, numbers)."""
    asked, notes = [], []

    def decode(prompts, params, *, seed, numbers, model, batch_size, stopping):
        asked.append((model, [tuple(one) for one in prompts], tuple(seed), list(numbers)))
        assert params.temperature == config.temperature
        assert params.max_new_tokens == config.max_new_tokens
        assert (params.top_p, params.top_k) == (config.top_p, config.top_k)
        assert batch_size == 64
        return [Answer([7] * (1 + n % 2), [], n % 2 == 0) for n in numbers]

    config = Gkd.Config.model_validate({"method": "gkd", **TEACHER, **options})
    teacher = tiny_llama(1)
    context = composed(
        model=tiny_llama(0), decode=decode, max_length=max_length, note=notes.append,
        tokenizer=tiny_tokenizer(pad=True), precision=nullcontext, progress=lambda *_: None,
        seed=seed, planned=planned, train=SimpleNamespace(per_device_eval_batch_size=2),
        other_model=lambda asked: teacher,
    )  # fmt: skip
    return GkdObjective(config, context), asked, notes, teacher


def test_each_row_s_writer_is_drawn_by_its_number_whichever_process_has_it():
    objective, asked, _, teacher = objective_of(lmbda=0.4, seq_kd=True, temperature=0.7, top_p=0.8)
    made = objective.sample_rollouts(rows(40), range(40), 3, lambda: False)
    (own_model, own_prompts, own_seed, own), (other, _, seed, rest) = asked
    assert own_model is None
    assert other is teacher
    assert (own_seed, seed) == ((3,), (3, 1))
    assert sorted([*own, *rest]) == list(range(40))
    assert 8 <= len(own) <= 24
    assert own_prompts == [(10 + n, 20 + n) for n in own]
    assert [row.input_ids[2:] for row in made] == [(7,) * (1 + n % 2) for n in range(40)]
    assert [row.labels[:2] for row in made] == [(-100, -100)] * 40
    halves = []
    for numbers in (range(0, 40, 2), range(1, 40, 2)):
        again, asked, _, _ = objective_of(lmbda=0.4, seq_kd=True, temperature=0.7)
        again.sample_rollouts([rows(40)[n] for n in numbers], numbers, 3, lambda: False)
        halves += asked[0][3]
    assert sorted(halves) == sorted(own)
    other_seed, asked, _, _ = objective_of(lmbda=0.4, seed=6)
    other_seed.sample_rollouts(rows(40), range(40), 3, lambda: False)
    assert asked[0][3] != own


def test_a_row_keeps_its_answer_where_nobody_writes_one():
    objective, asked, _, _ = objective_of(lmbda=0.0)
    assert objective.sample_rollouts(rows(3), range(3), 0, lambda: False) == rows(3)
    assert asked == []
    assert objective.step_metrics() == {"on_policy": (0.0, 3.0)}
    assert list(objective.updates(3, 0)) == [range(3)]


@pytest.mark.parametrize(("given", "draws"), [({}, False), ({"lmbda": 1}, True)])
def test_the_divergence_chooses_the_best_checkpoint(recipe, given, draws):
    asked = {"metrics": ["loss"], "holdout": 4, "eval_strategy": "steps", "eval_steps": 2,
             "load_best_model_at_end": True, "metric_for_best_model": "divergence"}  # fmt: skip
    if draws:
        with pytest.raises(RecipeError, match="write generate_every: 1"):
            recipe(alignment=given, evaluate=asked)
        asked["generate_every"] = 1
    found = run_recipe(recipe(alignment=given, evaluate=asked))
    lines = (found.folder / "stages" / "small" / "metrics.jsonl").read_text().splitlines()
    scored = [one for one in map(json.loads, lines) if one["phase"] == "score"]
    assert [one["step"] for one in scored if "divergence" in one] == [2, 4]


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k"])
def test_settings_of_sampling_are_refused_where_nobody_writes(name):
    given = {"method": "gkd", **TEACHER, name: 1 if name == "top_k" else 0.5}
    Gkd.Config.model_validate(given)
    with pytest.raises(ValidationError, match=f"drop {name}"):
        Gkd.Config.model_validate({**given, "lmbda": 0})


def test_a_row_without_a_prompt_keeps_its_answer():
    objective, asked, _, _ = objective_of(lmbda=0.5, seq_kd=True)
    whole = [Encoded((5, 6, 7), (5, 6, 7), "a text")] * 8
    assert objective.sample_rollouts(whole, range(8), 0, lambda: False) == whole
    assert [numbers for *_, numbers in asked] == [[], []]


def test_answers_of_the_model_are_measured_and_a_plan_lets_it_write_all():
    objective, asked, _, _ = objective_of(lmbda=0.1, planned=True, max_new_tokens=9)
    objective.sample_rollouts(rows(5), range(5), 0, lambda: False)
    assert asked[0][3] == [0, 1, 2, 3, 4]
    found = objective.step_metrics()
    assert found == {"on_policy": (5.0, 5.0), "length": (7.0, 5.0), "ended": (3.0, 5.0)}


@pytest.mark.parametrize(("lmbda", "own", "teacher_s"), [(0.5, 0, 5), (1.0, 5, 0)])
def test_a_plan_lets_the_teacher_write_all_that_it_may(lmbda, own, teacher_s):
    objective, asked, _, _ = objective_of(lmbda=lmbda, seq_kd=True, planned=True)
    objective.sample_rollouts(rows(5), range(5), 0, lambda: False)
    assert [len(prompts) for _, prompts, *_ in asked] == [own, teacher_s]


def test_of_a_conversation_the_last_answer_is_written_anew():
    ids = tuple(range(10, 20))
    learnt = (-100, 11, -100, -100, 14, 15, 16, -100, -100)
    row = Encoded(ids[:9], learnt, "talk")
    assert answer_start(row) == 4
    assert answer_start(Encoded((1, 2), (-100, -100), "")) == 2
    objective, asked, _, _ = objective_of(lmbda=1.0)
    (made,) = objective.sample_rollouts([row], [0], 0, lambda: False)
    assert asked[0][1] == [ids[:4]]
    assert (made.input_ids, made.labels) == ((*ids[:4], 7), (-100,) * 4 + (7,))


def test_a_prompt_without_room_for_an_answer_loses_its_start_and_is_told_of_once():
    objective, asked, notes, _ = objective_of(max_length=10, max_new_tokens=9, lmbda=1.0)
    objective.sample_rollouts(rows(3), range(3), 0, lambda: False)
    assert asked[0][1] == [(20,), (21,), (22,)]
    assert len(notes) == 1


def test_the_loss_is_the_divergence_and_held_out_rows_have_its_mean():
    objective, asked, _, teacher = objective_of(beta=0.2, divergence_temperature=0.5)
    model, batch = objective.context.models.model, rows(3)
    batch[1] = Encoded((5, 6, 7, 8, 9), (-100, 6, 7, 8, 9), "longer")
    loss, _ = objective.loss(model, batch)
    found = divergence(model, teacher, batch, 0.2, 0.5)
    assert float(loss) == pytest.approx(float(found.nats_N.sum()))
    assert objective.weight(batch) == 8
    values = divergences(objective.config, objective.context, batch)
    wanted = [found.nats_N[found.row_N == n].mean().item() for n in range(3)]
    assert values == pytest.approx(wanted, rel=1e-5)
    assert asked == []
    bare = Encoded((5, 6), (-100, -100), "prompt alone")
    divergences(objective.config, objective.context, [batch[0], bare])
    assert asked[0][1:] == ([(5, 6)], (2**31,), [1])


# --- whole runs


@pytest.fixture(scope="module")
def wider(tmp_path_factory):
    """A model with the same tokenizer, whose embedding has ids that `tiny_llama` has not."""
    model = tiny_llama(1)
    model.resize_token_embeddings(600, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight[300:].mul_(50)
    return tiny_model_folder(tmp_path_factory.mktemp("wider"), model)


@pytest.mark.parametrize("wider_is", ["teacher", "student"])
def test_no_model_writes_an_id_that_the_other_cannot_read(recipe, wider, teacher_folder, wider_is):
    if wider_is == "teacher":
        asked = {"teacher": {"path": str(wider)}, "seq_kd": True, "lmbda": 0.0}
        job = recipe(alignment=asked, train={"max_steps": 1})
    else:
        job = recipe(model=wider, alignment={"lmbda": 1.0}, train={"max_steps": 1})
    run_recipe(job)


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    """A model that the student has to become: with other weights, and another depth of meaning."""
    model = tiny_llama(3)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return tiny_model_folder(tmp_path_factory.mktemp("teacher"), model)


@pytest.fixture
def recipe(tmp_path, model_folder, teacher_folder):
    """Return a function that writes a recipe, with settings by their keys, and loads it."""
    lines = [{"prompt": f"say {n}:", "completion": f" {n % 7}"} for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def made(data="jsonl", model=model_folder, **changes):
        block = {"method": data, "path": str(tmp_path / "rows.jsonl")}
        stage = {
            "name": "small", "adapter": {"method": "lora", "r": 4},
            "alignment": {
                "method": "gkd", "teacher": {"path": str(teacher_folder)}, "max_new_tokens": 6,
                **changes.pop("alignment", {}),
            },
            "data": block,
            "train": {
                "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.02,
                "logging_steps": 1, "save_strategy": "steps", "save_steps": 2,
                **changes.pop("train", {}),
            },
            "evaluate": {"metrics": [] if data == "prompts" else ["loss"], "holdout": 4},
            **changes,
        }  # fmt: skip
        whole = {"recipe": 1, "name": "gkd", "output_dir": str(tmp_path / "runs"),
                 "model": {"path": str(model)}, "stages": [stage]}  # fmt: skip
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(whole))
        return load_recipe(path, Registry.discover())

    return made


def scores(summary, when):
    return getattr(summary.stages["small"], when)


@pytest.mark.parametrize(
    ("adapter", "options"),
    [({"method": "lora", "r": 4}, {"seq_kd": True}), ({"method": "full"}, {"beta": 0.0})],
)
def test_a_run_comes_nearer_to_its_teacher(recipe, adapter, options):
    train = {"max_steps": 12}
    job = recipe(adapter=adapter, alignment={**options, "temperature": 1.0}, train=train)
    found = run_recipe(job)
    before, after = scores(found, "before")["divergence"], scores(found, "after")["divergence"]
    assert after < before - 0.004
    card = (found.folder / "stages" / "small" / "adapter" / "README.md").read_text()
    assert "| teacher | `model` |" in card  # the folder's name, without what is above it
    lock = json.loads((found.folder / "lock.json").read_text())
    ((path, hashes),) = lock["other_models"].items()
    assert path.endswith("model")
    assert len(hashes["model.safetensors"]) == 64


def test_prompts_alone_are_rows_where_a_model_writes_every_answer(recipe):
    with pytest.raises(RecipeError, match="'gkd', with its settings, reads completion or chat"):
        recipe("prompts")
    found = run_recipe(recipe("prompts", alignment={"lmbda": 1.0}, train={"max_steps": 2}))
    assert set(scores(found, "after")) == {"divergence"}


def test_rows_without_a_prompt_are_told_of_where_a_model_is_to_write(recipe, tmp_path):
    job = recipe(alignment={"lmbda": 1.0}, train={"max_steps": 1}, evaluate=None)
    lines = [{"prompt": "", "completion": f"text {n}"} for n in range(6)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"E105.*no row of stage 'small' has a prompt"):
        run_recipe(job)
    file.write_text(file.read_text() + json.dumps({"prompt": "say", "completion": "it"}) + "\n")
    said = (run_recipe(job).folder / "log.txt").read_text()
    assert "6 of 7 rows have no prompt, and keep their own answer" in said
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_recipe(recipe(alignment={"lmbda": 0.0}, train={"max_steps": 1}, evaluate=None))


def test_a_stop_that_only_the_teacher_has_is_told(recipe, tmp_path):
    teacher = tiny_llama(1)
    for number, ends in enumerate((ord("a"), 256)):
        teacher.generation_config.eos_token_id = ends
        folder = tiny_model_folder(tmp_path / str(number), teacher)
        asked = {"teacher": {"path": str(folder)}}
        found = run_recipe(recipe(alignment=asked, train={"max_steps": 1}, evaluate=None))
        told = "ends its answers at 'a' too" in (found.folder / "log.txt").read_text()
        assert told == (ends == ord("a"))


class Killed(BaseException):
    """As if the process had ended."""


@pytest.fixture
def stopped(monkeypatch):
    """Return a function that runs a job until its checkpoint of step 2, and returns the folder."""
    save = Checkpoints.save

    def killed(self, step, tensors, facts):
        save(self, step, tensors, facts)
        if step == 2:
            raise Killed(self.folder)

    def run(job):
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", killed)
            with pytest.raises(Killed) as caught:
                run_recipe(job)
        return caught.value.args[0].parents[2]

    return run


def test_a_resumed_run_has_the_same_bytes_and_another_teacher_is_refused(
    recipe, teacher_folder, stopped
):
    job = recipe(alignment={"seq_kd": True, "lmbda": 0.3})
    whole, half = run_recipe(job).folder, stopped(job)
    config = teacher_folder / "generation_config.json"
    before = config.read_text()
    config.write_text(before + "\n")
    with pytest.raises(CheckpointError, match=r"E405.*is not the one that the run started with"):
        resume_recipe(job, half)
    config.write_text(before)
    resume_recipe(job, half)
    file = "stages/small/adapter/adapter_model.safetensors"
    assert (whole / file).read_bytes() == (half / file).read_bytes()


def test_another_teacher_makes_another_stage(recipe, tmp_path, teacher_folder):
    job = recipe()
    found = [
        stage_fingerprint(
            job.recipe, job.recipe.stages[0],
            {"model": {"sha256": {}}, "plugins": [],
             "other_models": {str(teacher_folder): {"model.safetensors": digest}}},
            tmp_path, {},
        )
        for digest in ("one", "another", "one")
    ]  # fmt: skip
    assert found[0] == found[2] != found[1]


def faults(job, base=None):
    return preflight(job, base or BaseModel(job.recipe.model))


def test_a_teacher_that_cannot_read_the_rows_is_refused_where_the_recipe_names_it(
    recipe, tmp_path, teacher_folder
):
    assert faults(recipe()) == []
    (gone,) = faults(recipe(alignment={"teacher": {"path": "/nowhere"}}))
    assert (gone.code, gone.path) == ("E201", "stages[0].alignment.teacher.path")
    other = tiny_tokenizer()
    other.add_tokens(["Ω"])
    (fault,) = faults(recipe(model=tiny_model_folder(tmp_path / "more", tokenizer=other)))
    assert (fault.code, fault.path) == ("E041", "stages[0].alignment.teacher.path")
    assert "'Ω' is 257" in fault.what
    narrow = tiny_llama()
    narrow.resize_token_embeddings(256)
    folder = tiny_model_folder(tmp_path / "narrow", narrow)
    (fault,) = faults(recipe(alignment={"teacher": {"path": str(folder)}}))
    assert (fault.code, fault.path) == ("E041", "stages[0].alignment.teacher.path")
    assert "an embedding of 256 tokens" in fault.what
    assert "tokenizer has 257" in fault.what
    stored = tiny_llama()
    stored.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    block = {"path": str(tiny_model_folder(tmp_path / "stored", stored))}
    (fault,) = faults(recipe(alignment={"teacher": block}))
    assert (fault.code, fault.path) == ("E231", "stages[0].alignment.teacher.path")
    assert "write stages.0.alignment.teacher.quantization: {load_in_4bit: true}" in fault.fix
    as_stored = {**block, "quantization": {"load_in_4bit": True}}
    assert faults(recipe(alignment={"teacher": as_stored})) == []
    short = tiny_llama()
    short.config.max_position_embeddings = 64
    shorter = {"teacher": {"path": str(tiny_model_folder(tmp_path / "short", short))}}
    (fault,) = faults(recipe(alignment=shorter))
    assert "rows may have 256 tokens, and it has 64 positions" in fault.what
    assert faults(recipe(alignment=shorter, train={"max_length": 64})) == []


def test_weights_of_a_teacher_that_cannot_be_used_are_told_at_its_key(recipe, tmp_path):
    infinite, other = tiny_llama(1), tiny_llama(1)
    with torch.no_grad():
        infinite.lm_head.weight[5] = 1e6  # too large for float16
    other.config.intermediate_size = 48
    for model, said in ((infinite, "teacher.dtype: bfloat16"), (other, "belong together")):
        folder = tiny_model_folder(tmp_path / said[:5], model)
        with pytest.raises(EnvironmentFault) as caught:
            run_recipe(recipe(alignment={"teacher": {"path": str(folder), "dtype": "float16"}}))
        (fault,) = caught.value.faults
        assert (fault.code, fault.path) == ("E207", "stages[0].alignment.teacher.path")
        assert fault.place is not None
        assert said in fault.fix


def test_a_teacher_of_several_stages_is_named_and_read_once(recipe, monkeypatch):
    """As in the rounds of `repeat`, each of which is a stage."""
    small = recipe(
        model="org/small", alignment={"teacher": {"path": "org/large"}}, evaluate=None
    ).recipe
    again = small.stages[0].model_copy(update={"name": "again"})
    own = {"teacher": OtherModel(path="org/small"), "method": "gkd"}
    third = again.model_copy(update={"alignment": Gkd.Config.model_validate(own)})
    whole = small.model_copy(update={"stages": [*small.stages, again, third]})
    wanted = [("model", "org/small", None), ("model", "org/large", None)]
    assert list(sources.names(whole)) == wanted
    read = []
    monkeypatch.setattr(provenance, "lock_of", lambda *_: {})
    monkeypatch.setattr(run_folder, "plugins_of", lambda _: [])
    monkeypatch.setattr(provenance, "model_hashes", lambda base: read.append(base.asked.path) or {})
    run_folder._provenance(SimpleNamespace(recipe=whole), BaseModel(whole.model))
    assert read == ["org/large", "org/small"]


def test_a_plan_counts_the_teacher(recipe, teacher_folder):
    (stage,) = plan_recipe(recipe(alignment={"lmbda": 1.0})).stages
    wanted = sum(p.numel() for p in tiny_llama().parameters()) * 4
    peaks = {peak.phase: peak for peak in stage.peaks}
    for phase in ("prepare", "rollout", "train"):
        assert wanted <= peaks[phase].by_kind["other models"] < 1.02 * wanted  # and rotary tables
    assert any(peak.phase == "rollout" for peak in stage.peaks)


def test_two_revisions_of_a_teacher_are_two_models_of_the_lock(tmp_path, monkeypatch):
    data = {"method": "jsonl", "path": "x.jsonl"}
    stages = [
        {"name": name, "adapter": {"method": "lora"}, "data": data,
         "alignment": {"method": "gkd", "teacher": {"path": "org/large", "revision": revision}}}
        for name, revision in (("one", None), ("two", "v1"), ("three", "v2"))
    ]  # fmt: skip
    path = tmp_path / "r.yaml"
    model = {"path": "embedded:model"}
    path.write_text(json.dumps({"recipe": 1, "name": "r", "model": model, "stages": stages}))
    monkeypatch.setattr(provenance, "lock_of", lambda *_: {})
    monkeypatch.setattr(provenance, "model_hashes", lambda base: f"files of {base.asked.revision}")
    found = run_folder._provenance(load_recipe(path, Registry.discover()), None)
    assert found["other_models"] == {
        "org/large": "files of None", "org/large@v1": "files of v1", "org/large@v2": "files of v2",
    }  # fmt: skip
