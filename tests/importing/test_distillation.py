"""TRL's gkd.py: its teacher, who writes the answers, and what is learnt of a conversation."""

from __future__ import annotations

import pytest

from llmft.cli.commands.import_ import import_any
from llmft.cli.commands.import_peer import Choices

GKD = (
    "python examples/scripts/gkd.py --model_name_or_path Qwen/Qwen2-0.5B-Instruct"
    " --dataset_name org/talks --teacher_model_name_or_path org/large --output_dir out --use_peft"
)


def imported(loaded, command):
    return loaded(import_any(command, Choices("trl")))


def test_a_teacher_has_the_model_s_type_revision_and_bits(loaded):
    more = " --load_in_8bit --torch_dtype bfloat16 --model_revision v2 --beta 0.2 --seq_kd"
    recipe, stage = imported(loaded, GKD + more)
    ours, teacher = stage.alignment, stage.alignment.teacher
    assert (teacher.path, teacher.revision, teacher.dtype) == ("org/large", "v2", "bfloat16")
    assert (teacher.quantization.load_in_8bit, teacher.quantization.load_in_4bit) == (True, False)
    assert (ours.lmbda, ours.seq_kd, ours.beta) == (0.5, True, 0.2)
    assert (ours.temperature, ours.max_new_tokens) == (0.9, 128)
    assert ours.divergence_temperature == 1.0
    assert (stage.data.method, stage.data.learn) == ("chat", "last")
    assert recipe.model.learn_template == "turn"
    assert (stage.train.max_length, stage.train.on_long_row) == (1024, "fail")


def test_settings_of_sampling_are_left_out_where_nothing_is_sampled(loaded):
    _, stage = imported(loaded, GKD + " --lmbda 0 --dtype float32")
    assert stage.alignment.lmbda == 0
    assert stage.alignment.teacher.dtype == "float32"
    assert "revision" not in stage.alignment.teacher.model_fields_set


@pytest.mark.parametrize(
    ("old", "new", "grade"),
    [
        (" --teacher_model_name_or_path org/large", "", "cannot"),
        (" --use_peft", ' --teacher_model_init_kwargs \'{"dtype": "auto"}\'', "decide"),
    ],
)
def test_a_teacher_that_is_not_known_is_told(old, new, grade):
    found = import_any(GKD.replace(old, new), Choices("trl"))
    assert any(one.grade == grade and "teacher" in str(one.key) for one in found.findings)
