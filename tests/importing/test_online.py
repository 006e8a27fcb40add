"""Methods that sample answers, of ms-swift and TRL: what a step, a loss and a reward come to."""

from __future__ import annotations

import pytest
import torch
from llmft_rewards import math_verify
from llmft_rewards.pattern import Pattern

from llmft.cli.commands.import_ import import_any
from llmft.cli.commands.import_peer import Choices
from llmft.training.step_plan import Plan

pytest.importorskip("math_verify")
SWIFT = (
    "NPROC_PER_NODE=2 swift rlhf --rlhf_type grpo --model Qwen/Qwen2.5-7B-Instruct"
    " --tuner_type full --dataset AI-MO/NuminaMath-TIR#1000 --torch_dtype bfloat16"
    " --reward_funcs accuracy --per_device_train_batch_size 4 --num_generations 8"
    " --gradient_accumulation_steps 4 --num_train_epochs 1 --max_length 2048 --deepspeed zero3"
)
TRL = """\
model_name_or_path: Qwen/Qwen2-0.5B-Instruct
dataset_name: mine/prompts
use_peft: true
output_dir: out
reward_funcs: [accuracy_reward, think_format_reward]
num_generations: 4
"""


def grades(found, grade):
    return {one.missing: one.why for one in found.findings if one.grade == grade}


def swift(more: str = "", old: str = "", new: str = ""):
    return import_any(SWIFT.replace(old, new) + more, Choices("ms-swift"))


def test_a_command_becomes_the_recipe_that_trains_the_same(recipe_of):
    more = " --beta 0.001 --overlong_filter true --top_k 50 --reward_weights 0.7"
    assert swift(more).verdict == "same but for speed or logging"
    recipe, stage = recipe_of(SWIFT + more)
    ours, data, train = stage.alignment, stage.data, stage.train
    assert (ours.method, ours.loss_type, ours.num_generations) == ("grpo", "grpo", 8)
    assert (ours.temperature, ours.top_p, ours.top_k) == (0.9, 1.0, 50)
    assert (ours.beta, ours.use_bias_correction_kl, ours.token_kl_max) == (0.001, False, 10.0)
    assert (ours.max_completion_length, ours.mask_truncated_completions) == (512, True)
    assert (ours.disable_dropout, ours.steps_per_generation) == (False, 1)
    assert ours.reward_timeout_seconds == 86_400
    (reward,) = ours.rewards
    assert reward.model_dump() == {
        "method": "math_verify", "weight": 0.7, "answer_tag": "answer", "boxed": "none",
        "extraction_mode": "first_match",
    }  # fmt: skip
    assert (data.method, data.path, data.num_samples) == ("prompts", "AI-MO/NuminaMath-TIR", 1000)
    assert (data.columns.prompt, data.columns.answers) == ("messages", "solution")
    assert data.remove_response
    # 2 x 4 x 4 answers are 4 prompts, and their answers are taken 4 at a time.
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps) == (4, 1)
    assert (train.max_length, train.on_long_row, train.learning_rate) == (2560, "truncate", 1e-5)
    assert (recipe.model.stop, recipe.model.learn_template) == (["<|im_end|>"], "stop")


def test_a_package_that_is_not_here_is_told_and_no_obstacle(monkeypatch):
    monkeypatch.setattr(math_verify, "find_spec", lambda name: None)
    found = swift()
    assert found.verdict == "same but for speed or logging"
    assert "method: math_verify" in found.text
    assert any("pip install math-verify" in why for why in grades(found, "none").values())


def test_without_anything_stated_its_defaults_are_written(recipe_of):
    bare = SWIFT.replace(" --gradient_accumulation_steps 4", "")
    _, stage = recipe_of(bare)
    assert (stage.alignment.beta, stage.alignment.epsilon) == (0.04, 0.2)
    assert stage.train.gradient_accumulation_steps == 1  # one prompt a step: 8 answers


SHAPES = [
    # rows, processes, answers a pass, passes an update, passes sampled together, G, epochs
    (1000, 2, 4, 4, 4, 8, 1),
    (1000, 7, 1, 4, 4, 14, 1),
    (10000, 8, 2, 8, 32, 16, 1),
    (10001, 8, 2, 8, 32, 16, 2),
    (96, 2, 2, 2, 8, 4, 3),
    (100, 1, 8, 3, 3, 4, 1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("iterations", [1, 2])
def test_a_step_has_the_prompts_and_updates_of_trls_sampler(recipe_of, shape, iterations):
    """ms-swift's trainer is a subclass of TRL's, and draws its prompts with this class."""
    from trl.trainer.utils import RepeatSampler

    rows, processes, batch, accumulation, together, size, epochs = shape
    sampler = RepeatSampler(
        range(rows), mini_repeat_count=size,
        batch_size=processes * batch * together // size, repeat_count=iterations * together,
    )  # fmt: skip
    theirs = epochs * len(sampler) // (processes * batch * together)  # passes of a process
    command = (
        SWIFT.replace("NODE=2", f"NODE={processes}").replace("#1000", f"#{rows}")
        .replace("batch_size 4", f"batch_size {batch}").replace("steps 4", f"steps {accumulation}")
        .replace("generations 8", f"generations {size}").replace("epochs 1", f"epochs {epochs}")
        + f" --steps_per_generation {together} --num_iterations {iterations}"
    )  # fmt: skip
    _, stage = recipe_of(command)
    train, ours = stage.train, stage.alignment
    assert train.rows_per_step() == sampler.batch_size
    steps = Plan.of(rows, train, 0).steps
    updates = steps * ours.steps_per_generation * ours.num_iterations
    assert updates == theirs // accumulation
    assert train.per_device_train_batch_size <= batch


def test_what_counts_updates_counts_steps_here(recipe_of):
    more = " --steps_per_generation 8 --save_steps 100 --logging_steps 5 --warmup_steps 20"
    _, stage = recipe_of(f"{SWIFT} --max_steps 60{more}")
    train = stage.train
    assert (stage.alignment.steps_per_generation, train.rows_per_step()) == (2, 8)
    assert (train.max_steps, train.save_steps, train.logging_steps) == (30, 50, 2)
    assert train.warmup_steps == 10
    odd = swift(f" --max_steps 61{more}")
    assert "updates within a step" in grades(odd, "decide")


@pytest.mark.parametrize(("more", "old", "new", "missing"), [
    ("", "accuracy", "toolbench", "reward toolbench"),
    (" --external_plugins p.py", "", "", "Python code of the user's own (external_plugins)"),
    (" --loss_type real", "", "", "loss_type real of grpo"),
    (" --loss_type dapo --steps_per_generation 8", "", "", "what the loss is divided by"),
    (" --loss_type dapo --overlong_filter true", "", "", "what the loss is divided by"),
    (" --loss_type dapo --importance_sampling_level sequence", "", "", "importance_sampling_level"),
    (" --importance_sampling_level sequence_token", "", "", "importance_sampling_level"),
    (" --scale_rewards gdpo", "", "", "scale_rewards"),
    (" --advantage_estimator rloo", "", "", "advantages by rloo"),
    (" --dynamic_sample true", "", "", "groups without variance that are sampled again"),
    (" --multi_turn_scheduler math_tip_trick", "", "", "answers of several turns"),
    (" --stop_words Observation:", "", "", "words that end an answer"),
    (" --loss_type dapo --use_liger_kernel true", "", "", "what the loss is divided by"),
    (" --loss_type cispo --sequence_parallel_size 2", "", "", "what the loss is divided by"),
    (" --loss_type dapo --optim adafactor", "", "", "a loss divided by passes, with adafactor"),
    (" --reward_weights 1 2", "", "", "a weight of each reward"),
    (" --reward_weights 1", "accuracy", "accuracy format", "a weight of each reward"),
    (" --repetition_penalty 1.1", "", "", "a penalty of repetitions in sampling"),
    (" --reward_model a/b", "", "", "a reward model with code of its own"),
    (" --async_generate true", "", "", "answers of the policy before the last step"),
    ("", "generations 8", "generations 5", "the answers of a step"),
    (" --steps_per_generation 6", "", "", "the answers of a step"),
    ("", "AI-MO/NuminaMath-TIR#1000", "swift/no_robots", "rows without a solution"),
    ("", "AI-MO/NuminaMath-TIR#1000", "swift/self-cognition", "rows of another form"),
])  # fmt: skip
def test_what_a_recipe_cannot_say_stops_the_import(more, old, new, missing):
    found = swift(more, old, new)
    assert missing in grades(found, "cannot")
    assert not found.text


@pytest.mark.parametrize(("more", "old", "new", "missing"), [
    (" --loss_type bnpo", "generations 8", "generations 16", "bnpo and the forward passes"),
    (" --loss_type bnpo", "", "", ""),
    (" --truncation_strategy delete", "", "", "truncation_strategy delete"),
    (" --system prompt.txt", "", "", "system in a file"),
])  # fmt: skip
def test_what_the_command_leaves_open_needs_a_decision(more, old, new, missing):
    found = swift(more, old, new)
    assert not grades(found, "cannot")
    assert set(grades(found, "decide")) == ({missing} if missing else set())


@pytest.mark.parametrize(("more", "has"), [("", True), (" --lora_dropout 0", False)])
def test_dropout_is_in_what_an_update_is_held_against(recipe_of, more, has):
    found = swift(more, "--tuner_type full", "--tuner_type lora")
    assert found.verdict == "same but for speed or logging"
    _, stage = recipe_of(SWIFT.replace("--tuner_type full", "--tuner_type lora") + more)
    assert (stage.alignment.disable_dropout, stage.alignment.old_logps_dropout) == (False, has)


@pytest.mark.parametrize(("more", "trainer", "has"), [
    ("", "grpo", False), ("use_vllm: true\n", "grpo", True), ("", "rloo", True),
    ("num_iterations: 2\n", "grpo", True), ("disable_dropout: true\n", "rloo", False),
    ("lora_dropout: 0.0\n", "rloo", False),
])  # fmt: skip
def test_trl_computes_it_with_dropout_where_it_computes_it(stage_of, more, trainer, has):
    text = f"{TRL}per_device_train_batch_size: 4\n{more}"
    _, stage = stage_of(text, trainer=trainer, rows="prompts")
    assert stage.alignment.old_logps_dropout is has


@pytest.mark.parametrize(("more", "long", "rule"), [
    (" --vllm_mode colocate --use_vllm true --vllm_max_model_len 4096", 2560, "truncate"),
    (" --vllm_mode colocate --use_vllm true --vllm_max_model_len 2048", 2048, "fail"),
    (" --vllm_mode server --use_vllm true --vllm_max_model_len 2048", 2560, "truncate"),
    ("", 2560, "truncate"),
])  # fmt: skip
def test_a_prompt_that_would_get_a_shorter_answer_is_refused(recipe_of, more, long, rule):
    _, stage = recipe_of(SWIFT + more)
    assert (stage.train.max_length, stage.train.on_long_row) == (long, rule)
    _, stage = recipe_of((SWIFT + more).replace(" --max_length 2048", ""))
    room = 32768 if "colocate" not in more else int(more.rpartition(" ")[2])
    assert (stage.train.max_length, stage.train.on_long_row) == (room, "fail")


def test_a_system_text_beside_the_command_is_read(recipe_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt.txt").write_text("Think,\nthen answer.\n", "utf-8")
    _, stage = recipe_of(f"{SWIFT} --system prompt.txt")
    assert stage.data.system == "Think,\nthen answer.\n"


@pytest.mark.parametrize("said", ["/{secret}", "../secret.txt", "link.txt", "long.txt"])
def test_a_system_text_elsewhere_is_not_copied(tmp_path, monkeypatch, said):
    here, secret = tmp_path / "here", tmp_path / "secret.txt"
    here.mkdir()
    secret.write_text("a key")
    (here / "link.txt").symlink_to(secret)
    (here / "long.txt").write_text("a key " * 20_000)
    monkeypatch.chdir(here)
    said = said.format(secret=str(secret).lstrip("/"))
    found = import_any(f"{SWIFT} --system {said}", Choices("ms-swift"))
    assert "a key" not in found.text
    assert found.verdict == "needs your decision"


def test_local_rows_are_conversations_with_a_solution(recipe_of):
    command = SWIFT.replace("AI-MO/NuminaMath-TIR#1000", "rows.jsonl#1000")
    data = recipe_of(command)[1].data
    assert (data.path, data.columns.prompt, data.columns.answers) == (
        "rows.jsonl", "messages", "solution",
    )  # fmt: skip
    asked = import_any(command, Choices("ms-swift", rows="prompts"))
    assert asked.verdict == "same but for speed or logging"
    assert all(line in asked.text for line in ("prompt: query", "chat: true", "answers: solution"))
    assert "remove_response" not in asked.text
    plain = recipe_of(command.replace("accuracy", "format"))[1]
    assert plain.data.columns.answers is None
    (form,) = plain.alignment.rewards
    made = Pattern(form)
    texts = ["<think>a</think>\n<answer>b</answer>", "<think>a</think><answer>b</answer>."]
    assert [made.score("", text, ()) for text in texts] == [1.0, 0.0]


def test_the_kl_of_a_token_is_what_ms_swift_computes(recipe_of):
    """grpo_trainer.py, 4.6.0: k3 of a clamped gap, itself clamped; here by hand, with gradients."""
    from llmft_alignments.preference_maths import k3_divergence

    _, stage = recipe_of(f"{SWIFT} --beta 0.1")
    most = stage.alignment.token_kl_max
    reference = torch.tensor([-1.0, -40.0, -0.5, -3.0, -1.0])
    found = []
    for clamped in (True, False):
        logps = torch.tensor([-1.5, -0.1, -30.0, -0.2, -3.42], requires_grad=True)
        if clamped:
            gap = (reference - logps).clamp(-20, 20)
            kl = (gap.exp() - gap - 1).clamp(-10, 10)
        else:
            kl = k3_divergence(logps, reference).clamp(max=most)
        kl.sum().backward()
        found.append((kl.detach(), logps.grad))
    torch.testing.assert_close(found[0], found[1])
    assert (found[0][0] == 10).sum() == 2


def test_rewards_by_length_and_repetition_have_its_flags(recipe_of):
    more = (
        " --reward_funcs cosine repetition soft_overlong --soft_cache_length 128"
        " --repetition_n_grams 5 --cosine_max_len_value_correct 0.25"
    )
    _, stage = recipe_of(SWIFT.replace(" --reward_funcs accuracy", more))
    cosine, repeated, long = (one.model_dump() for one in stage.alignment.rewards)
    assert cosine == {
        "method": "cosine", "weight": 1.0, "answer_tag": "answer", "boxed": "none",
        "extraction_mode": "first_match", "max_len": 512, "min_value_wrong": -0.5,
        "max_value_wrong": 0.0, "min_value_correct": 0.25, "max_value_correct": 1.0,
    }  # fmt: skip
    assert (repeated["ngram_size"], repeated["max_penalty"]) == (5, -1.0)
    assert (long["max_length"], long["cache_length"]) == (512, 128)
    assert stage.data.columns.answers == "solution"
    short = swift(f"{more} --cosine_max_len 100", " --reward_funcs accuracy", "")
    assert "answers beyond a reward's length" in grades(short, "cannot")
    less = swift(" --reward_funcs soft_overlong", " --reward_funcs accuracy", "")
    assert "soft_overlong" in grades(less, "cannot")


@pytest.mark.parametrize(("more", "clip", "epsilon"), [
    (" --loss_type dapo", 4.0, 4e-8),
    (" --loss_type cispo --max_grad_norm 0.5 --adam_epsilon 1e-6", 2.0, 4e-6),
    (" --loss_type dapo --max_grad_norm 0", 0.0, 4e-8),
    (" --loss_type grpo --max_grad_norm 0.5", 0.5, 1e-8),
])  # fmt: skip
def test_a_loss_that_is_divided_by_passes_again_is_clipped_the_same(recipe_of, more, clip, epsilon):
    _, stage = recipe_of(SWIFT + more)
    assert (stage.train.max_grad_norm, stage.train.adam_epsilon) == (clip, pytest.approx(epsilon))


def test_ligers_loss_clamps_no_kl_and_masks_no_answer(recipe_of):
    _, stage = recipe_of(f"{SWIFT} --use_liger_kernel true --overlong_filter true")
    assert stage.alignment.beta == 0.04
    assert stage.alignment.token_kl_max is None
    assert not stage.alignment.mask_truncated_completions


def test_trl_counts_answers_too_and_its_own_rewards_are_written(stage_of):
    text = f"{TRL}per_device_train_batch_size: 8\ngradient_accumulation_steps: 2\n"
    _, stage = stage_of(text + "reward_weights: [1.0, 0.2]\nnum_train_epochs: 1\nmax_steps: 5\n",
                        trainer="grpo", rows="prompts", )  # fmt: skip
    train, ours = stage.train, stage.alignment
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps) == (4, 1)
    assert (ours.steps_per_generation, ours.disable_dropout) == (1, False)
    assert ours.reward_timeout_seconds == 86_400
    assert [(one.method, one.weight) for one in ours.rewards] == [
        ("math_verify", 1.0), ("pattern", 0.2),
    ]  # fmt: skip
    assert stage.data.columns.answers == "solution"
    both = text.replace("dataset_name: mine/prompts", "datasets: [{path: a/b}, {path: c/d}]")
    _, stage = stage_of(both + "max_steps: 5\n", trainer="grpo", rows="prompts")
    assert [one.columns.answers for one in stage.data.sources] == ["solution"] * 2


def test_trls_form_of_thoughts_is_its_own_reward():
    from trl.rewards import think_format_reward

    from llmft.importing.structure.trl.rollouts import _OWN_REWARDS

    form = _OWN_REWARDS["think_format_reward"]
    texts = [
        "<think>a\nb</think> c\nd", "<think>a</think>", "x <think>a</think>", "<think>a",
        "<think>a<think>b</think>", "<think>a</think><think>b</think>", "",
    ]  # fmt: skip
    theirs = think_format_reward([[{"content": text}] for text in texts])
    made = Pattern(Pattern.Config(**form))
    assert [made.score("", text, ()) for text in texts] == theirs
    assert set(theirs) == {0.0, 1.0}


@pytest.mark.parametrize(("more", "grade", "missing"), [
    ("steps_per_generation: 3\n", "cannot", "the answers of a step"),
    ("generation_batch_size: 60\n", "cannot", "the answers of a step"),
    ("reward_weights: [1.0]\n", "cannot", "a weight of each reward"),
])  # fmt: skip
def test_what_trl_samples_together_is_a_step_or_refused(imported, more, grade, missing):
    text = f"{TRL}per_device_train_batch_size: 8\n{more}"
    text = text.replace("num_generations: 4", "num_generations: 16")
    found = imported(text, trainer="grpo", rows="prompts")
    assert missing in grades(found, grade)
