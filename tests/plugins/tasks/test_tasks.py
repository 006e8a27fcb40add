"""`collect` and `rank`: what they draw and write, who ranks, and how a run waits for people."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from llmft.api.errors import LlmftError, WaitsForPeople
from llmft.cli.main import main
from llmft.engine.session import resume_recipe, run_recipe
from llmft.inference.answering import answer, load_run
from llmft.modeling.tiny_models import tiny_model_folder
from llmft.ranking import read_samples
from llmft.ranking.log import rater_log
from llmft.ranking.ratings import Decision
from llmft.ranking.samples import rankable
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry

K = 3
PROMPTS = [f"say {n}:" for n in range(6)]
TRAIN = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def registry():
    return Registry.discover()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    tiny_model_folder(folder)
    rows = [{"prompt": prompt, "right": ["a", "b"]} for prompt in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def collect(home) -> dict:
    return {
        "name": "collect",
        "task": {"method": "collect", "num_return_sequences": K, "max_new_tokens": 4},
        "data": {
            "method": "prompts",
            "path": str(home / "prompts.jsonl"),
            "columns": {"answers": "right"},
        },
    }


@pytest.fixture(scope="module")
def load(home, registry):
    def loaded(*stages: dict, runs: Path, name: str = "tasks", **more):
        recipe = {
            "recipe": 1,
            "name": name,
            "output_dir": str(runs),
            "model": {"path": str(home / "model")},
            "stages": list(stages),
            **more,
        }
        path = runs / f"{name}.yaml"
        runs.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(recipe))
        return load_recipe(path, registry)

    return loaded


def rank(**settings) -> dict:
    return {"name": "rank", "task": {"method": "rank", "samples": "collect", **settings}}


def rows(folder: Path, stage: str) -> list[dict]:
    text = (folder / "stages" / stage / "rows.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def metrics(folder: Path, stage: str) -> dict:
    return json.loads((folder / "stages" / stage / "result.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def whole(load, registry, collect, home) -> Path:
    """A run that collects from the base, ranks by a rule, learns a reward, and ranks by that."""
    judge = {"method": "length", "target": 4, "unit": "characters"}
    reward = {
        "name": "reward",
        "adapter": {"method": "lora", "r": 2},
        "alignment": {"method": "reward"},
        "data": {"method": "from_stage", "stage": "rank"},
        "train": TRAIN,
        "evaluate": {"metrics": [], "holdout": 0.2},
    }
    again = {**rank(reward_model="reward"), "name": "again"}
    stages = (collect, rank(judge=judge), reward, again)
    return run_recipe(load(*stages, runs=home / "runs")).folder


def test_a_run_that_waits_answers_with_its_last_policy(load, registry, collect, home, tmp_path):
    sft = {
        "name": "sft",
        "adapter": {"method": "lora", "r": 2},
        "alignment": {"method": "sft"},
        "data": {
            "method": "jsonl",
            "path": str(home / "prompts.jsonl"),
            "columns": {"completion": "prompt"},
            "repeated_prompt": "keep",
        },
        "train": TRAIN,
    }
    with pytest.raises(WaitsForPeople):
        run_recipe(load(sft, {**collect, "start_from": "sft"}, rank(), runs=tmp_path))
    (folder,) = [p for p in (tmp_path / "tasks").iterdir() if p.is_dir()]
    named = answer(load_run(folder, registry), folder, PROMPTS[:2], stage="sft", max_new_tokens=4)
    assert answer(load_run(folder, registry), folder, PROMPTS[:2], max_new_tokens=4) == named
    with pytest.raises(LlmftError, match="stage 'collect' made samples, not a policy"):
        answer(load_run(folder, registry), folder, PROMPTS[:2], stage="collect")


# --- collect ---------------------------------------------------------------------------------


def test_collect_draws_k_answers_to_each_prompt_in_its_order(whole):
    lines = rows(whole, "collect")
    assert [line["prompt"] for line in lines] == PROMPTS
    assert all(list(line) == ["prompt", "completions", "answers"] for line in lines)
    assert all(len(line["completions"]) == K for line in lines)
    assert all(line["answers"] == ["a", "b"] for line in lines)
    found = metrics(whole, "collect")
    assert (found["prompts"], found["answers"]) == (len(PROMPTS), len(PROMPTS) * K)
    every = [{text.strip() for text in line["completions"]} for line in lines]
    assert found["distinct_answers"] == sum(map(len, every)) > len(PROMPTS)
    assert not (whole / "stages" / "collect" / "adapter").exists()


def test_collect_draws_by_the_seed(whole, load, registry, collect, tmp_path):
    first = rows(whole, "collect")
    same = run_recipe(load(collect, runs=tmp_path / "same")).folder
    other = run_recipe(load(collect, runs=tmp_path / "other", seed=18)).folder
    assert rows(same, "collect") == first
    assert [line["completions"] for line in rows(other, "collect")] != [
        line["completions"] for line in first
    ]


def test_collect_says_which_prompts_it_cuts_and_refuses_answers_that_leave_them_no_room(
    load, registry, collect, tmp_path
):
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "say " * 40}) + "\n")
    data = {"method": "prompts", "path": str(tmp_path / "long.jsonl")}
    long = {**collect, "data": data, "train": {"max_length": 32}}
    summary = run_recipe(load(long, runs=tmp_path))
    log = (summary.folder / "log.txt").read_text()
    assert "of 1 rows: 1 with the start of the prompt cut" in log
    greedy = {**collect["task"], "max_new_tokens": 31}
    with pytest.raises(LlmftError, match=r"E045.*31 tokens leaves no room for a prompt within 32"):
        run_recipe(load({**long, "task": greedy}, runs=tmp_path))


def test_collect_asks_what_any_kind_of_row_asks(load, registry, collect, tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    made = {
        "jsonl": [{"prompt": "a:", "completion": " b"}],
        "preference": [{"prompt": "a:", "chosen": " b", "rejected": " c"}],
    }
    stages = []
    for method, lines in made.items():
        path = tmp_path / f"{method}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        stages.append({**collect, "name": method, "data": {"method": method, "path": str(path)}})
    folder = run_recipe(load(*stages, runs=tmp_path)).folder
    assert [rows(folder, method)[0]["prompt"] for method in made] == ["a:", "a:"]
    from llmft_tasks.collect import prompt_row

    from llmft.api import ChatRow

    assert prompt_row(ChatRow(tuple(turns))).prompt == tuple(turns[:1])
    assert prompt_row(ChatRow(tuple(turns[:1]))).prompt == tuple(turns[:1])


# --- rank ------------------------------------------------------------------------------------


def test_a_rule_puts_the_better_answer_first(whole):
    def score(text):
        return max(0.0, 1 - abs(len(text.strip()) - 4) / 4)

    pairs = rows(whole, "rank")
    assert pairs
    assert all(score(pair["chosen"]) > score(pair["rejected"]) for pair in pairs)
    collected = {line["prompt"]: line["completions"] for line in rows(whole, "collect")}
    for pair in pairs:
        assert {pair["chosen"], pair["rejected"]} <= set(collected[pair["prompt"]])
        assert pair["answers"] == ["a", "b"]
        assert 0 < pair["margin"] <= 1
    every = [score(text) for texts in collected.values() for text in texts]
    found = metrics(whole, "rank")
    assert found["score"] == pytest.approx(sum(every) / len(every))
    assert found["pairs"] == len(pairs)
    assert found["samples"] == len(PROMPTS)


def test_a_reward_model_ranks_by_its_rewards(whole, registry):
    from llmft.inference.scoring import score_file

    assert rows(whole, "again")
    file = whole / "stages" / "again" / "rows.jsonl"
    for pair in score_file(
        load_run(whole, registry), whole, file, stage="reward"
    ):  # as `llmft score` says
        assert pair["chosen_score"] > pair["rejected_score"]
    assert math.isfinite(metrics(whole, "again")["score"])


def test_best_worst_takes_one_pair_of_a_prompt(whole, load, registry, collect, tmp_path):
    judge = {"method": "length", "target": 4, "unit": "characters"}
    stages = (collect, rank(judge=judge, pairs="best_worst"))
    folder = run_recipe(load(*stages, runs=tmp_path)).folder
    prompts = [pair["prompt"] for pair in rows(folder, "rank")]
    assert len(prompts) == len(set(prompts))
    assert {pair["prompt"] for pair in rows(whole, "rank")} >= set(prompts)


def test_a_rule_that_tells_nothing_apart_is_an_error(load, registry, collect, tmp_path):
    judge = {"method": "format", "max_words": 100_000, "lacks": "no such text"}
    with pytest.raises(LlmftError, match=r"E303.*makes no pair") as caught:
        run_recipe(load(collect, rank(judge=judge), runs=tmp_path))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    "settings",
    [
        {"judge": {"method": "exact_match"}, "reward_model": "collect"},
        {"judge": {"method": "exact_match"}, "raters": 2},
        {"judge": {"method": "exact_match", "weight": 0.5}},
    ],
)
def test_one_judge_only(load, collect, tmp_path, settings):
    with pytest.raises(LlmftError, match="E040"):
        load(collect, rank(**settings), runs=tmp_path)


# --- people ----------------------------------------------------------------------------------


def decide(folder: Path, rater: str, *, but: int = 0) -> None:
    """Let a person rank what a run waits for, the shorter answer first; all but a few."""
    collected = folder / "stages" / "collect"
    samples = [s for s in read_samples(collected / "rows.jsonl") if len(s.distinct) > 1]
    with rater_log(collected / "ratings", rater) as log:
        for sample in samples[: len(samples) - but]:
            order = sorted(range(K), key=lambda i: (len(sample.completions[i]), i))
            log.add(Decision(sample.id, tuple((i,) for i in order), False, "2026-01-01", 1.0))


def test_a_run_waits_for_people_and_goes_on_when_they_have_ranked(load, collect, tmp_path, capsys):
    recipe = load(collect, rank(), runs=tmp_path).source.path
    assert main(["run", recipe, "--json"]) == 9
    told = json.loads(capsys.readouterr().out)
    assert (told["exit_code"], told["errors"][0]["code"]) == (9, "E305")
    (folder,) = [p for p in (tmp_path / "tasks").iterdir() if p.is_dir()]
    assert f"llmft rank {folder}" in told["errors"][0]["fix"]
    assert "--resume" in told["errors"][0]["fix"]
    waiting = json.loads((folder / "stages" / "rank" / "waiting.json").read_text())
    assert "resume" not in waiting  # a command is not read from a file
    found = folder / "stages" / "rank" / waiting["samples"]
    assert found.resolve() == (folder / "stages" / "collect" / "rows.jsonl").resolve()

    decide(folder, "ann", but=1)  # not all: it waits on
    assert main(["run", recipe, str(folder), "--resume", "--quiet"]) == 9
    assert "finished: nobody" in capsys.readouterr().err

    decide(folder, "ann")
    assert main(["run", recipe, str(folder), "--resume", "--quiet"]) == 0
    pairs = rows(folder, "rank")
    assert pairs
    assert all(len(pair["chosen"]) <= len(pair["rejected"]) for pair in pairs)
    assert not (folder / "stages" / "rank" / "waiting.json").exists()
    assert "score" not in metrics(folder, "rank")


def test_nobody_is_waited_for_where_there_is_nothing_to_rank(load, registry, collect, tmp_path):
    greedy = {**collect, "task": {**collect["task"], "top_k": 1}}
    with pytest.raises(LlmftError, match=r"E303.*no pair \(6 samples, 6 identical\)"):
        run_recipe(load(greedy, rank(), runs=tmp_path))


def test_a_run_says_how_many_prompts_there_are_to_rank(load, registry, collect, tmp_path):
    few = {**collect, "task": {**collect["task"], "top_k": 2, "max_new_tokens": 2}}
    with pytest.raises(WaitsForPeople) as caught:
        run_recipe(load(few, rank(), runs=tmp_path))
    (folder,) = [p for p in (tmp_path / "tasks").iterdir() if p.is_dir()]
    samples = read_samples(folder / "stages" / "collect" / "rows.jsonl")
    assert 0 < len(rankable(samples)) < len(samples), "some prompts have one answer only"
    assert f"to rank {len(rankable(samples))} prompts" in str(caught.value)


def test_a_reward_stage_of_the_run_judges_by_its_name(whole, tmp_path, capsys):
    import shutil

    run = Path(shutil.copytree(whole, tmp_path / "run"))
    assert main(["rank", str(run / "stages" / "collect"), "--judge", "reward", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [rater["rater"] for rater in told["raters"]] == ["judge-reward"]
    assert told["counts"]["pairs"] == metrics(whole, "again")["pairs"]
    assert main(["rank", str(run / "stages" / "collect"), "--judge", "rewrad"]) == 2
    assert "did you mean 'reward'" in capsys.readouterr().err


def test_a_judges_ranking_lets_a_waiting_run_go_on(load, registry, collect, tmp_path, capsys):
    loaded = load(collect, rank(), runs=tmp_path)
    with pytest.raises(WaitsForPeople):
        run_recipe(loaded)
    (folder,) = [p for p in (tmp_path / "tasks").iterdir() if p.is_dir()]
    assert main(["rank", str(folder), "--judge", "length:target=4,unit=characters"]) == 0
    assert "everything is rated; continue with: llmft run" in capsys.readouterr().out
    assert resume_recipe(loaded, folder).stages["rank"].metrics["pairs"] > 0


def test_as_many_people_as_asked_for_are_waited_for(load, registry, collect, tmp_path, capsys):
    loaded = load(collect, rank(raters=2), runs=tmp_path)
    with pytest.raises(WaitsForPeople, match="2 people"):
        run_recipe(loaded)
    (folder,) = [p for p in (tmp_path / "tasks").iterdir() if p.is_dir()]
    waiting = folder / "stages" / "rank" / "waiting.json"
    told = json.loads(waiting.read_text())
    assert (told["raters"], told["finished"]) == (2, [])
    decide(folder, "ann")
    decide(folder, "bob", but=1)
    capsys.readouterr()
    assert main(["rank", str(folder), "--status"]) == 0
    out = capsys.readouterr().out
    assert "it waits for 2 people; finished: ann" in out
    assert "continue with" not in out  # every sample is rated by somebody, but not by two people
    assert main(["rank", str(folder), "--status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["raters_needed"], told["finished"]) == (2, ["ann"])
    with pytest.raises(WaitsForPeople, match="finished: ann"):
        resume_recipe(loaded, folder)
    told = json.loads(waiting.read_text())
    assert (told["raters"], told["finished"]) == (2, ["ann"])
    decide(folder, "bob")
    assert main(["rank", str(folder), "--status"]) == 0
    assert "everything is rated; continue with: llmft run" in capsys.readouterr().out
    summary = resume_recipe(loaded, folder)
    assert summary.stages["rank"].metrics["rated_by_two"] > 0


def test_a_judge_that_takes_over_from_people_leaves_nothing_waiting(
    load, registry, collect, tmp_path
):
    with pytest.raises(WaitsForPeople):
        run_recipe(load(collect, rank(), runs=tmp_path))
    judge = {"method": "length", "target": 4, "unit": "characters"}
    summary = resume_recipe(load(collect, rank(judge=judge), runs=tmp_path))
    assert not (summary.folder / "stages" / "rank" / "waiting.json").exists()


def test_a_waiting_run_is_told_as_such_and_is_no_crash(load, collect, tmp_path, capsys):
    recipe = load(collect, rank(), runs=tmp_path).source.path
    assert main(["run", recipe]) == 9
    out, err = capsys.readouterr()
    assert "tasks waits for people" in out
    assert "error[E305]" in err
    assert not list(tmp_path.rglob("crash*"))
