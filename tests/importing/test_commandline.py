"""What a shell makes of a line around the script's own flags, and what its flags may mean."""

from __future__ import annotations

import pytest

from llmft.api.errors import RecipeError
from llmft.cli.commands.import_ import import_command
from llmft.importing.commandline import find_commands

TAIL = "lora.py --dataset_name triviaqa --model_id gpt2"
GPT2 = f"python {TAIL}"


def recipe(command: str) -> str:
    return import_command(command).text


def refused(command: str, **options):
    with pytest.raises(RecipeError) as caught:
        import_command(command, **options)
    return caught.value.faults[0]


@pytest.mark.parametrize(
    "command",
    [
        f"CUDA_VISIBLE_DEVICES=0,1 WANDB_PROJECT='my run' python {TAIL}",
        f'$ OMP_NUM_THREADS="1" {GPT2}',
        f"nohup {GPT2} > log.txt 2>&1 &",
        f"{GPT2} 2>&1 | tee --append log.txt",
        f"{GPT2} >> log.txt 2>errors.txt",
        f"{GPT2} && echo done",
        f"{GPT2}; echo done",
        f"{GPT2} # don't forget --seed 3",
        GPT2.replace(" --model_id", " \\\n  # --seed 3 \\\n  --model_id"),
    ],
)
def test_what_belongs_to_the_shell_is_no_flag_of_the_script(command):
    assert recipe(command) == recipe(GPT2)


@pytest.mark.parametrize(
    "launcher",
    [
        "accelerate launch --config_file=ds.yaml --mixed_precision bf16",
        "torchrun --nproc_per_node=4 --master_port 29500",
        "deepspeed --num_gpus=2",
    ],
)
def test_a_launchers_options_are_told_as_left_out(launcher):
    text = " ".join(line.strip("# ") for line in recipe(f"X=1 {launcher} {TAIL}").splitlines())
    assert f"'{launcher}' is not taken over" in text
    assert "X=1" not in text
    lines = f"X=1 {launcher}".replace(" ", " \\\n ")
    assert recipe(f"{lines} \\\n {TAIL}") == recipe(f"{launcher} {TAIL}")
    assert recipe(f"python -u {TAIL}") == recipe(GPT2)


@pytest.mark.parametrize(
    "value", ["$MODEL", '"$DIR/gpt2"', "${MODEL}", "$(cat name)", "`cat name`", "$1", 'gpt2 "$@"']
)
def test_a_value_that_only_the_shell_knows_is_refused(value):
    fault = refused(f"python lora.py --dataset_name triviaqa --model_id {value}")
    assert fault.code == "E051"
    assert fault.place.source[fault.place.column - 1] in "$`"
    assert "the shell" in fault.what


def test_a_dollar_in_single_quotes_is_text():
    assert "a$b" in recipe(f"{GPT2} --output_dir 'a$b'")


@pytest.mark.parametrize(
    "script", ["dpo.py", "scripts/train_orpo.py", "reward_modeling.py", "grpo.py"]
)
def test_a_script_that_trains_by_another_alignment_does_not_become_sft(script):
    fault = refused(f"python {script} --dataset_name me/pairs --model_id gpt2 --lora_r 8")
    assert "sft" in fault.what
    assert "llmft list-recipes" in fault.fix


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--lora_r 8 --r 16", ("--lora_r", "--r")),
        ("--max_seq_length 512 --max_length 256", ("--max_seq_length", "--max_length")),
        ("--torch_dtype float32 --use_bfloat16 True", ("--torch_dtype", "--use_bfloat16")),
        ("--bf16 False --use_bfloat16 True", ("--bf16", "--use_bfloat16")),
    ],
)
def test_two_flags_that_set_one_setting_differently_are_refused(flags, names):
    fault = refused(f"{GPT2} {flags}")
    assert all(name in fault.what for name in names)
    assert fault.place.line == 1


def test_two_flags_that_set_one_setting_to_one_value_are_fine():
    assert "bf16: true" in recipe(f"{GPT2} --bf16 --use_bfloat16 True")


@pytest.mark.parametrize(
    "value",
    ["c_attn,c_proj", "c_attn, c_proj", '\'["c_attn", "c_proj"]\'', "\"['c_attn','c_proj']\""],
)
def test_names_come_in_any_usual_form(value):
    assert "target_modules: [c_attn, c_proj]" in recipe(f"{GPT2} --target_modules {value}")


def test_a_text_that_looks_like_a_number_stays_text():
    assert 'output_dir: "2024"' in recipe(f"{GPT2} --output_dir 2024")
    assert 'revision: "1e5"' in recipe(f"{GPT2} --model_revision 1e5")


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--use_peft", "--use_peft: an adapter is what is trained"),
        ("--eval_strategy no", "--eval_strategy no: off, as is the default here"),
        ("--max_steps -1", "--max_steps -1: the number of epochs applies, as is the default here"),
        ("--output_dir ''", "--output_dir '': nothing is given"),
    ],
)
def test_a_flag_that_sets_nothing_is_told_with_its_reason(flag, line):
    assert line in recipe(f"{GPT2} {flag}")


@pytest.mark.parametrize(
    ("flag", "what", "fix"),
    [
        ("--eval_strategy steps", "needs held-out rows", "set evaluate.eval_strategy"),
        ("--use_peft False", "without an adapter", "add --method full"),
        ("--no_packing", "--no_packing", "write --packing False"),
        ("--max_prompt_length 64", "is about pairs", "drop it"),
        ("--gradient_checkpointing_kwargs x", "--gradient_checkpointing_kwargs", "use_reentrant"),
    ],
)
def test_the_way_out_of_a_flag_does_not_change_what_it_means(flag, what, fix):
    fault = refused(f"{GPT2} {flag}")
    assert what in fault.what
    assert fix in fault.fix


@pytest.mark.parametrize("flag", ["--output_dir", "--output_dir a b", "--model_revision main x"])
def test_a_text_that_is_not_one_value_is_refused(flag):
    assert f"{flag.split()[0]} takes one value" in refused(f"{GPT2} {flag}").what


@pytest.mark.parametrize("flag", ["--model_id gpt2", "--dataset_name triviaqa"])
def test_a_flag_without_its_value_is_refused(flag):
    name = flag.split()[0]
    assert f"{name} takes one value" in refused(GPT2.replace(flag, name) + " --seed 1").what


def test_a_contradiction_names_no_lines_of_a_file_that_nobody_sees():
    assert "(lines" not in refused(f"{GPT2} --warmup_ratio 0.1 --warmup_steps 5").what


def test_commands_are_counted_from_one():
    assert "no command 0" in refused(GPT2, number=0).what


def test_what_is_no_such_command_is_told_how_one_looks():
    fault = refused("mytool sft --model_name_or_path gpt2 --dataset_name x")
    assert "ends in .py" in fault.fix


@pytest.mark.parametrize(
    "flags",
    [
        "--hub_token hf_AbCdEfGhIjKlMnOpQrStUv0123456789",
        "--hub_token a-pass-phrase",
        "--seed -1 --api_key=a-pass-phrase",
        "--output_dir 'out --password=a-pass-phrase",
        "--output_dir hf_AbCdEfGhIjKlMnOpQrStUv0123456789",
    ],
)
def test_s1_a_secret_in_a_command_is_never_printed(flags):
    with pytest.raises(RecipeError) as caught:
        import_command(f"WANDB_API_KEY={'0123456789abcdef' * 2}01234567 {GPT2} {flags}")
    for fault in caught.value.faults:
        said = f"{fault.line()}\n{fault.place.source}"
        assert fault.place.source
        assert not any(secret in said for secret in ("hf_AbC", "pass-phrase", "0123456789abcdef"))


SCRIPT = """\
nproc_per_node=2
export MODEL="Qwen/Qwen2.5-7B"
SYSTEM='You are $5 worth.'
NPROC_PER_NODE=$nproc_per_node \\
swift sft --model $MODEL --name ${MODEL}-it --quoted '$MODEL' \\
    --gradient_accumulation_steps $(expr 16 / $nproc_per_node) --sum $((1 + 2 * 3)) \\
    --learning_rate 1e-4
"""


def test_variables_that_the_script_itself_sets_are_known():
    (command,) = find_commands(SCRIPT, "train.sh")
    assert {flag.name: flag.values for flag in command.flags} == {
        "model": ("Qwen/Qwen2.5-7B",), "name": ("Qwen/Qwen2.5-7B-it",), "quoted": ("$MODEL",),
        "gradient_accumulation_steps": ("8",), "sum": ("7",), "learning_rate": ("1e-4",),
    }  # fmt: skip
    assert "NPROC_PER_NODE=2" in command.before


@pytest.mark.parametrize("changed", [
    "if true; then MODEL=other; fi", "  MODEL=other", "read MODEL", "MODEL=$1", "MODEL=$(cat name)",
    "for MODEL in a b; do", "if true; then\nMODEL=other\nfi", "MODEL+=x", "MODEL=`cat name`",
])  # fmt: skip
def test_variables_that_may_be_something_else_are_not(changed):
    text = f"MODEL=mine\n{changed}\nswift sft --model $MODEL\n"
    with pytest.raises(RecipeError, match="only the shell knows"):
        find_commands(text, "train.sh")
    with pytest.raises(RecipeError, match="only the shell knows"):
        find_commands("HF_TOKEN=hf_x\nswift sft --hub_token $HF_TOKEN\n", "train.sh")
    assert find_commands("MODEL=mine\nswift sft --model $MODEL\n", "x")[0].flags[0].values == (
        "mine",
    )  # fmt: skip


def test_trls_script_may_be_started_as_a_module():
    (command,) = find_commands("python -m trl.scripts.sft --output_dir x", "<command>")
    assert (command.script, [flag.name for flag in command.flags]) == ("trl sft", ["output_dir"])


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("axolotl train ax/a.yaml", "llmft import ax/a.yaml;"),
        ("accelerate launch --config_file z.yml -m axolotl.cli.train a.yml", "llmft import a.yml;"),
        ("FORCE_TORCHRUN=1 llamafactory-cli train a.yaml lr=1", "llmft import a.yaml;"),
        ("oumi train -c a.yaml --training.max_steps 20", "llmft import a.yaml;"),
        ("accelerate launch scripts/run_sft.py a.yaml", "import that file, with --trainer"),
        ("llamafactory-cli train --stage sft", "llmft import FILE.yaml"),
    ],
)
def test_a_command_that_reads_a_configuration_is_answered_with_what_to_import(command, said):
    assert said in refused(command).fix
