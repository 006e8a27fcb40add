"""`llmft import`: a training script's command line becomes a recipe that says what it changed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmft.api import AdapterConfig
from llmft.api.errors import RecipeError
from llmft.cli.commands import shipped
from llmft.cli.commands.import_ import import_command
from llmft.cli.commands.validate import check
from llmft.cli.main import main
from llmft.importing.commandline import find_commands
from llmft.importing.flags import HOMELESS, HOMES, TASKS
from llmft.importing.writing import comment
from llmft.importing.writing import yaml as written
from llmft.recipes.load import load_recipe
from llmft.recipes.recipe import Recipe, Stage
from llmft.recipes.textfile import decoded
from llmft.recipes.yamlfile import parse
from llmft.registry.registry import Registry

COMMANDS = str(Path(__file__).parent / "commands.md")
METHODS = ("dora", "lora", "prefix", "ptuning", "qlora")
GPT2 = "python lora.py --dataset_name triviaqa --model_id gpt2"


@pytest.fixture(scope="module")
def registry():
    return Registry.discover()


@pytest.fixture
def load(registry, tmp_path):
    def run(command, **options):
        path = tmp_path / "recipe.yaml"
        path.write_text(import_command(command, **options).text, "utf-8")
        return load_recipe(path, registry).recipe

    return run


def faults(command, **options):
    with pytest.raises(RecipeError) as caught:
        import_command(command, **options)
    return caught.value.faults


def why(command, flag, **options):
    changes = import_command(command, **options).changes
    return next(c["why"] for c in changes if (c["flag"] or "").startswith(f"--{flag}"))


@pytest.mark.parametrize(("number", "method"), enumerate(METHODS, start=1))
def test_a_known_command_becomes_a_recipe_that_validates(number, method, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(import_command(COMMANDS, number=number).text, "utf-8")
    (row,) = check([str(path)], [], model=False)
    assert [stage["adapter"] for stage in row["stages"]] == [method]


@pytest.mark.parametrize(("number", "method"), enumerate(METHODS, start=1))
def test_the_shipped_recipe_is_the_imported_one_and_scores_besides(number, method, load, registry):
    imported = load(COMMANDS, number=number).resolved()
    ours = load_recipe(shipped.find(f"{method}_triviaqa"), registry).recipe.resolved()
    # What the command does not say, and every shipped recipe has.
    assert ours["stages"][0].pop("evaluate")["metrics"] == ["exact_match", "f1", "loss"]
    assert imported["stages"][0].pop("evaluate") is None
    if method == "dora":  # a step of two rows would leave a GPU idle
        train = ours["stages"][0]["train"]
        assert (train["train_batch_size"], train["per_device_train_tokens"]) == (128, 8192)
        for name in ("train_batch_size", "per_device_train_tokens", "gradient_accumulation_steps",
                     "per_device_train_batch_size"):  # fmt: skip
            del train[name], imported["stages"][0]["train"][name]
    assert imported == ours


@pytest.mark.parametrize("number", range(1, 6))
def test_every_flag_of_the_known_commands_is_in_the_recipe_or_accounted_for(number):
    text = Path(COMMANDS).read_text("utf-8")
    command = find_commands(text, COMMANDS)[number - 1]
    recipe = import_command(COMMANDS, number=number).text
    words = " ".join(line.strip().removeprefix("# ") for line in recipe.splitlines())
    assert len(command.flags) >= 26
    for flag in command.flags:
        home = HOMES.get(flag.name, "")
        key = home.rpartition(".")[2]
        assert f"--{flag.name} " in words or f"{key}:" in recipe, flag


def test_every_home_in_the_table_is_a_setting(registry):
    adapters = {
        name
        for method in registry.names("adapter")
        for name in registry.method("adapter", method).Config.model_fields
    }
    top = {name: field.annotation for name, field in Recipe.model_fields.items()}
    for home in HOMES.values():
        block, _, key = home.rpartition(".")
        names = (
            adapters if block == "adapter"
            else set(AdapterConfig.model_fields) | {"split", "limit"} if block == "data"
            else set(_model(top, Stage, block).model_fields)
        )  # fmt: skip
        assert key in names, home
    assert not set(HOMES) & (set(HOMELESS) | set(TASKS))


def _model(top, stage, block):
    if not block:
        return Recipe
    first, *rest = block.split(".")
    found = top.get(first) or stage.model_fields[first].annotation
    found = next((a for a in getattr(found, "__args__", ()) if hasattr(a, "model_fields")), found)
    for name in rest:
        found = found.model_fields[name].annotation
    return found


def test_what_had_to_change_is_told_with_its_reason():
    dora = {"number": 1}
    assert "no layer of llama" in why(COMMANDS, "target_modules", **dora)
    assert "gpt_neox" in why(COMMANDS, "target_modules", **dora)
    assert "constant schedule ignores it" in why(COMMANDS, "warmup_ratio", **dora)
    assert "needs a GPU" in why(COMMANDS, "dora_ephemeral_gpu_offload", **dora)
    assert "same model on the hub" in why(COMMANDS, "model_id", **dora)
    assert "never in training" in why(COMMANDS, "use_cache", **dora)
    assert "'prefix' has no such setting" in why(COMMANDS, "lora_r", number=3)
    text = import_command(COMMANDS, number=4).text
    comment = re.sub(r"\s+# ", " ", text)
    assert "the title 'P-Tuning' says so; the script prefix_tuning.py says prefix" in comment


def test_settings_of_an_encoder_that_peft_ignores_are_left_out_with_the_reason(load):
    """The p-tuning command by itself, without the heading that says which adapter is meant."""
    command = find_commands(Path(COMMANDS).read_text("utf-8"), COMMANDS)[3]
    alone = " ".join([f"python {command.script}", *map(str, command.flags)])
    stage = load(alone).stages[0]
    assert stage.adapter.method == "prefix"
    assert stage.adapter.num_virtual_tokens == 30
    assert stage.adapter.encoder_hidden_size is None
    assert why(alone, "encoder_hidden_size") == (
        "PEFT ignores it without a projection; to train with one write prefix_projection: true and"
        " encoder_hidden_size: 768"
    )
    assert load(f"{alone} --prefix_projection True").stages[0].adapter.encoder_hidden_size == 768
    tail = "--dataset_name triviaqa --model_id gpt2 --encoder_num_layers 3 --encoder_dropout 0.5"
    assert "without an LSTM" in why(f"python p_tuning.py {tail}", "encoder_dropout")
    kept = load(f"python p_tuning.py {tail} --encoder_reparameterization_type LSTM")
    assert kept.stages[0].adapter.encoder_num_layers == 3


def test_a_title_a_script_and_a_flag_are_heard_in_this_order(load):
    tail = "--dataset_name triviaqa --model_id gpt2 --peft_type PROMPT_TUNING"
    assert load(f"python train.py {tail}").stages[0].adapter.method == "prompt"
    assert load(f"python p_tuning.py {tail}").stages[0].adapter.method == "ptuning"
    page = f"# Prefix tuning\n\npython p_tuning.py {tail}\n"
    assert load(page).stages[0].adapter.method == "prefix"
    assert load(page, method="prompt").stages[0].adapter.method == "prompt"
    assert load(f"{GPT2} --use_dora True").stages[0].adapter.method == "dora"
    assert load(f"{GPT2} --use_dora False").stages[0].adapter.method == "lora"


@pytest.mark.parametrize(
    "text",
    [
        GPT2,
        f"$ {GPT2}",
        f"```python\n{GPT2}\n```\n",
        GPT2.replace(" --", " \\\n    --"),
        GPT2.replace(" --", " \\ \r\n    --"),
        GPT2.replace(" --", "\n    --"),
        "python lora.py --dataset-name='triviaqa' --model_id=\"gpt2\"",
        GPT2.replace("python", "CUDA=0 accelerate launch").removeprefix("CUDA=0 "),
    ],
)
def test_a_command_is_read_in_any_usual_form(text, load, tmp_path):
    file = tmp_path / "command.sh"
    file.write_bytes(text.encode())
    assert load(str(file)) == load(GPT2)


def test_numbers_stay_as_they_were_written():
    text = import_command(f"{GPT2} --learning_rate 2e-4 --max_grad_norm .3").text
    assert "learning_rate: 2e-4\n" in text
    assert "max_grad_norm: .3\n" in text


def test_targets_that_exist_are_kept(load):
    neox = "python lora.py --dataset_name triviaqa --model_id EleutherAI/pythia-70m"
    found = load(f"{neox} --target_modules query_key_value").stages[0].adapter.target_modules
    assert found == ["query_key_value"]
    found = load(f"{GPT2} --target_modules c_attn q_proj").stages[0].adapter.target_modules
    assert found == ["c_attn"]
    unknown = GPT2.replace("gpt2", "some/thing")
    found = load(f"{unknown} --target_modules 'q_proj,v_proj'").stages[0].adapter.target_modules
    assert found == ["q_proj", "v_proj"]


def test_pushing_is_taken_over_only_where_it_is_asked_for(load):
    assert load(f"{GPT2} --push_to_hub False --hub_model_id me/it").push_to_hub is None
    assert load(f"{GPT2} --push_to_hub --hub_model_id me/it").push_to_hub.repo_id == "me/it"
    pushed = load(f"{GPT2} --push_to_hub True --output_dir out/mine").push_to_hub
    assert pushed.repo_id == "mine"


def test_a_data_set_without_a_method_is_read_as_a_path(load):
    data = load("python lora.py --dataset_name me/questions --model_id gpt2").stages[0].data
    assert (data.method, data.path) == ("jsonl", "me/questions")


def test_an_unknown_flag_is_named_with_its_place_and_the_nearest_one():
    first, second, third = faults(f"{GPT2} --learning_rat 1 --lr 1 --fp16 True")
    assert (first.place.line, first.place.column) == (1, len(GPT2) + 2)
    assert "--learning_rat" in first.what
    assert "'learning_rate'" in first.fix
    assert second.fix == "write --learning_rate"
    assert "float16" in third.fix


def test_a_value_that_cannot_be_is_placed_at_its_flag():
    first, second = faults(f"{GPT2} --optimizer sofia --num_train_epochs -1")
    assert first.place.column == len(GPT2) + 2
    assert "'sofia'" in first.what
    assert second.path == "stages[0].train.num_train_epochs"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hello there", "no command such as"),
        (f"{GPT2} --seed 1 --seed 2", "given twice"),
        (f"{GPT2} --output_dir 'out", "quote is not closed"),
        ("python lora.py stray --model_id gpt2", "belongs to no flag"),
        ("python train.py --dataset_name triviaqa --model_id gpt2", "which adapter is meant"),
        ("python lora.py --model_id gpt2", "no flag gives data.method"),
        (f"{GPT2} --task_type SEQ_CLS", "not trained here"),
        (f"{GPT2}\n\n{GPT2}", "2 commands here, in lines 1, 3"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_the_reason(text, said):
    assert said in faults(text)[0].what


def test_the_command_writes_a_file_once_and_prints_json(tmp_path, capsys):
    output = str(tmp_path / "recipe.yaml")
    args = ["import", COMMANDS, "--number", "2", "--output", output]
    assert main(args) == 0
    assert "warmup_ratio 0.03" in capsys.readouterr().out
    assert main(args) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["import", COMMANDS, "--number", "2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["recipe"] == Path(output).read_text("utf-8")
    assert {"flag", "setting", "value", "why"} == set(data["changes"][0])


def test_an_import_loads_nothing_heavy():
    heavy = "{'torch', 'transformers', 'peft', 'datasets', 'numpy', 'huggingface_hub', 'wandb'}"
    code = (
        "import sys; from llmft.cli.main import main; "
        f"code = main(['import', {COMMANDS!r}, '--number', '1']); "
        f"print(code, *{heavy} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.split() == ["0"]


@pytest.mark.parametrize("ends", ["\x85", "\u2028", "\u2029", "\n", "\r", "\r\n", "\x1b]0;x\x07"])
def test_a_comment_cannot_end_and_a_value_stays_one(ends):
    lines = comment(f"a{ends}seed: 99{ends}---{ends}b", "  ")
    assert all(line.startswith("  # ") for line in "\n".join(lines).split("\n"))
    text = "\n".join([*lines, f"  path: {written(f'a{ends}seed: 99')}"]) + "\n"
    decoded(text.encode(), "r.yaml")  # nothing that a recipe's reader refuses
    assert parse(text, "r.yaml").data == {"path": f"a{ends}seed: 99"}
