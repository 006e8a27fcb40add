"""Tasks, nested methods and repeated stages in a recipe: what they mean, and where faults are."""

from __future__ import annotations

import pytest

LOOP = """\
recipe: 1
name: loop
model: {path: org/model}
stages:
  - name: sft
    adapter: {method: lora}
    alignment: {method: sft}
    data: {method: jsonl, path: rows.jsonl}
  - name: collect
    start_from: sft
    task: {method: collect}
    data: {method: jsonl, path: prompts.jsonl, kind: prompt}
  - name: rank
    task: {method: rank, samples: collect, judge: {method: longer, target: 5}}
  - name: reward
    adapter: {method: lora, r: 4}
    alignment: {method: reward}
    data: {method: from_stage, stage: rank}
  - name: ppo
    start_from: sft
    alignment: {method: ppo, reward_model: reward}
    data: {method: jsonl, path: prompts.jsonl, kind: prompt}
  - name: last
    start_from: ppo
    alignment: {method: sft}
    data: {method: jsonl, path: rows.jsonl}
repeat: {stages: [collect, rank, reward, ppo], rounds: 3}
"""


def marked(fault):
    """Return the line that a fault names, and what of it is marked."""
    place = fault.place
    return place.line, place.source[place.column - 1 :][: place.width]


LINES = {line.strip(): number for number, line in enumerate(LOOP.splitlines(), start=1)}
REPEAT = LINES["repeat: {stages: [collect, rank, reward, ppo], rounds: 3}"]
RANK = LINES["task: {method: rank, samples: collect, judge: {method: longer, target: 5}}"]


# --- repeat ----------------------------------------------------------------------------------


def test_rounds_are_written_out_as_stages_of_their_own(load):
    loaded = load(LOOP)
    assert [stage.name for stage in loaded.recipe.stages] == [
        "sft",
        "collect", "rank", "reward", "ppo",
        "collect-2", "rank-2", "reward-2", "ppo-2",
        "collect-3", "rank-3", "reward-3", "ppo-3",
        "last",
    ]  # fmt: skip
    assert [stage.name for stage in loaded.written.stages] == [
        "sft", "collect", "rank", "reward", "ppo", "last",
    ]  # fmt: skip
    assert loaded.recipe.repeat is None
    assert loaded.rounds["ppo"] == ("ppo", 1)
    assert loaded.rounds["rank-3"] == ("rank", 3)
    assert "sft" not in loaded.rounds
    assert loaded.index_of("rank-3") == loaded.index_of("rank") == 2
    assert loaded.index_of("last") == 5


def test_a_round_reads_its_own_stages_and_starts_from_the_last_rounds_policy(load):
    stage = load(LOOP).recipe.stage
    assert [stage(name).start_from for name in ("collect", "collect-2", "collect-3")] == [
        "sft", "ppo", "ppo-2",
    ]  # fmt: skip
    assert [stage(name).start_from for name in ("ppo", "ppo-2", "ppo-3")] == ["sft", "ppo", "ppo-2"]
    assert stage("rank-2").task.samples == "collect-2"
    assert stage("reward-3").data.stage == "rank-3"
    assert stage("reward-2").start_from is None
    assert stage("ppo-3").alignment.reward_model == "reward-3"


def test_a_list_of_references_is_rewritten_item_by_item(load):
    text = LOOP.replace("samples: collect,", "samples: collect, others: [first, collect],")
    first = "  - name: first\n    task: {method: collect}\n    start_from: sft\n    data:" \
        " {method: jsonl, path: p, kind: prompt}\n  - name: collect\n"  # fmt: skip
    stage = load(text.replace("  - name: collect\n", first, 1)).recipe.stage
    assert stage("rank-2").task.others == ["first", "collect-2"]


def test_what_else_a_stage_says_is_the_same_in_each_round(load):
    loaded = load(LOOP)
    for name in ("collect", "rank", "reward", "ppo"):
        first, third = loaded.recipe.stage(name), loaded.recipe.stage(f"{name}-3")
        assert first.train == third.train
        assert first.adapter == third.adapter
    assert loaded.recipe.stage("rank-3").task.judge.target == 5


def test_each_round_draws_by_a_seed_of_its_own(load):
    loaded = load(LOOP)
    seeds = [loaded.recipe.stage(f"ppo{end}").own_seed(17) for end in ("", "-2", "-3")]
    assert len(set(seeds)) == 3
    assert seeds[0] == 17
    assert loaded.recipe.stage("last").seed is None
    again = load(LOOP.replace("name: loop", "name: loop\nseed: 18")).recipe
    assert again.stage("ppo-2").seed not in seeds
    one = load(
        LOOP.replace("    task: {method: collect}", "    seed: 18\n    task: {method: collect}")
    )
    assert one.recipe.stage("collect").seed == 18
    assert one.recipe.stage("collect-2").seed == again.stage("collect-2").seed


def test_a_policy_of_an_earlier_run_gives_way_to_the_last_rounds(load):
    whole = LOOP.replace("start_from: sft", "start_from: run:20260101-000000-abc/sft")
    stage = load(whole).recipe.stage
    assert stage("ppo").start_from == "run:20260101-000000-abc/sft"
    assert stage("ppo-2").start_from == "ppo"


def test_one_round_changes_nothing(load):
    loaded = load(LOOP.replace("rounds: 3", "rounds: 1"))
    assert loaded.recipe.stages == loaded.written.stages


def test_what_was_written_out_loads_again_as_it_is(load):
    from llmft.runs.run_folder import resolved_yaml

    loaded = load(LOOP)
    assert load(resolved_yaml(loaded.recipe)).recipe == loaded.recipe


@pytest.mark.parametrize(
    ("stages", "code", "path", "mark", "said"),
    [
        ("[collect, rnak]", "E030", "repeat.stages[1]", "rnak", "did you mean 'rank'"),
        ("[rank, collect]", "E036", "repeat.stages", "[", "collect, rank"),
        ("[collect, reward]", "E036", "repeat.stages", "[", "do not follow one another"),
        ("[collect, collect]", "E036", "repeat.stages", "[", "do not follow one another"),
        ("[collect, rank]", "E036", "repeat.stages", "[", "every round would be the same"),
        ("[reward]", "E036", "repeat.stages", "[", "every round would be the same"),
    ],
)
def test_stages_that_cannot_be_repeated_are_refused_with_their_place(
    faults, stages, code, path, mark, said
):
    (fault,) = faults(LOOP.replace("[collect, rank, reward, ppo]", stages))
    assert (fault.code, fault.path) == (code, path)
    line, shown = marked(fault)
    assert line == REPEAT
    assert shown.startswith(mark)
    assert said in fault.what + fault.fix


def test_rounds_that_start_from_no_policy_of_before_are_refused(faults):
    alone = LOOP.replace("start_from: sft", "adapter: {method: lora}")
    alone = alone.replace("adapter: {method: lora}\n    task", "task")
    (fault,) = faults(alone)
    assert (fault.code, fault.path) == ("E036", "repeat.stages")
    assert "every round would be the same" in fault.what


def test_a_stage_may_not_be_called_as_a_later_round_is(faults):
    (fault,) = faults(LOOP.replace("name: last", "name: rank-2"))
    assert (fault.code, fault.path) == ("E036", "stages[5].name")
    assert marked(fault) == (LINES["- name: last"], "rank-2")
    assert "later round" in fault.what


@pytest.mark.parametrize("rounds", ["0", "101", "two"])
def test_rounds_has_bounds(faults, rounds):
    (fault,) = faults(LOOP.replace("rounds: 3", f"rounds: {rounds}"))
    assert fault.path == "repeat.rounds"
    assert marked(fault) == (REPEAT, rounds)


# --- a stage's work --------------------------------------------------------------------------


def test_a_stage_with_an_alignment_and_a_task_is_refused_at_both(faults):
    text = LOOP.replace("    task: {method: collect}", "    alignment: {method: sft}\n"
                        "    task: {method: collect}")  # fmt: skip
    found = faults(text)
    assert {fault.path for fault in found if fault.code == "E040"} >= {"stages[1].alignment"}
    assert any("an alignment or a task, not both" in fault.what for fault in found)


def test_a_stage_with_neither_is_told_what_is_missing(faults):
    found = faults(LOOP.replace("    task: {method: collect}\n", ""))
    assert ("E021", "stages[1].alignment") in [(f.code, f.path) for f in found]
    assert "or a task" in next(f.fix for f in found if f.code == "E021")


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("adapter: {method: lora}", "stages[2].adapter"),
        ("evaluate: {metrics: []}", "stages[2].evaluate"),
        ("train: {learning_rate: 1e-3}", "stages[2].train.learning_rate"),
    ],
)
def test_what_trains_has_no_use_in_a_task(faults, line, path):
    text = LOOP.replace("  - name: rank\n", f"  - name: rank\n    {line}\n")
    (fault,) = [f for f in faults(text) if f.code == "E040"]
    assert path in (fault.path, *fault.path.split(" and "))
    assert "trains nothing" in fault.what


def test_a_task_that_reads_no_rows_refuses_data_and_one_that_does_wants_it(faults):
    extra = "  - name: rank\n    data: {method: jsonl, path: p, kind: prompt}\n"
    (fault,) = faults(LOOP.replace("  - name: rank\n", extra))
    assert (fault.code, "reads no rows" in fault.what) == ("E040", True)
    line = "    data: {method: jsonl, path: prompts.jsonl, kind: prompt}\n"
    (fault,) = faults(LOOP.replace(line, "", 1))
    assert (fault.code, fault.path) == ("E021", "stages[1].data")


def test_a_task_may_read_only_the_rows_that_it_declares(faults):
    (fault,) = faults(LOOP.replace("path: prompts.jsonl, kind: prompt}", "path: p}", 1))
    assert fault.code == "E042"
    assert "'collect' reads prompt rows" in fault.what


# --- methods inside methods ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("judge", "code", "path", "mark", "said"),
    [
        ("{method: lenght}", "E024", "task.judge.method", "lenght", "longer"),
        ("{method: longer, target: 0}", "E023", "task.judge.target", "0", "1"),
        ("{method: longer, tagret: 2}", "E020", "task.judge.tagret", "tagret", "target"),
        ("{target: 2}", "E021", "task.judge.method", "judge", "longer"),
        ("longer", "E022", "task.judge", "longer", "{method: longer}"),
    ],
)
def test_a_fault_in_a_nested_block_has_its_place(faults, judge, code, path, mark, said):
    (fault,) = faults(LOOP.replace("{method: longer, target: 5}", judge))
    assert (fault.code, fault.path) == (code, f"stages[2].{path}")
    assert marked(fault) == (RANK, mark)
    assert said in fault.what + fault.fix


def test_a_nested_block_in_an_alignment_is_read_by_its_own_method(load, faults):
    text = LOOP.replace("reward_model: reward}", "reward: {method: longer, target: 7}}")
    assert load(text).recipe.stage("ppo-2").alignment.reward.target == 7
    (fault,) = faults(text.replace("target: 7", "target: seven"))
    assert fault.path == "stages[4].alignment.reward.target"
    assert marked(fault)[1] == "seven"


def test_an_override_reaches_into_a_nested_block(load):
    loaded = load(LOOP, ["stages.rank.task.judge.target=9"])
    assert [loaded.recipe.stage(n).task.judge.target for n in ("rank", "rank-3")] == [9, 9]


# --- references of methods' own --------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "code", "path", "said"),
    [
        ("samples: collect", "samples: sft", "E033", "stages[2].task.samples", "produces a policy"),
        ("samples: collect", "samples: ppo", "E031", "stages[2].task.samples", "refer to each"),
        ("samples: collect", "samples: colect", "E030", "stages[2].task.samples", "'collect'"),
        ("stage: rank}", "stage: collect}", "E033", "stages[3].data.stage", "produces samples"),
        ("reward_model: reward", "reward_model: rank", "E033", "stages[4].alignment.reward_model",
         "produces preferences"),
        ("samples: collect", "samples: last", "E031", "stages[2].task.samples", "refer to each"),
        ("start_from: ppo", "start_from: rank", "E033", "stages[5].start_from", "preferences"),
    ],
)  # fmt: skip
def test_a_methods_own_reference_is_checked_by_what_the_stage_produces(
    faults, old, new, code, path, said
):
    found = [fault for fault in faults(LOOP.replace(old, new)) if fault.code == code]
    assert found
    assert path in found[0].path
    assert said in found[0].what + found[0].fix
    assert found[0].place.line


def test_what_a_repeated_stage_sends_to_the_hub_is_the_last_rounds(load):
    sent = load(LOOP + "push_to_hub: {repo_id: me/it, stage: ppo}\n").recipe
    assert sent.sent_stage(sent.push_to_hub) == "ppo-3"
    once = load(LOOP + "push_to_hub: {repo_id: me/it, stage: sft}\n").recipe
    assert once.sent_stage(once.push_to_hub) == "sft"


def test_a_tasks_useless_packing_is_one_fault(faults):
    collect = "    task: {method: collect}\n"
    packed = "    train: {packing: true, max_length: 9}\n"
    text = LOOP.replace(collect, collect + packed, 1)
    whats = [fault.what for fault in faults(text) if "packing" in fault.what]
    assert whats == ["a task trains nothing, so 'packing' has no effect (lines 11 and 12)"]
