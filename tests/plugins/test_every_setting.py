"""Every field of every builtin method's settings, set away from its default, does something.

A field without a case fails here, until somebody has said by what its effect is seen.
"""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from llmft_adapters.dora import Dora
from llmft_adapters.full import Full
from llmft_adapters.lora import Lora
from llmft_adapters.prefix import Prefix
from llmft_adapters.prompt import PromptTuning
from llmft_adapters.ptuning import PTuning
from llmft_adapters.qlora import QLora
from llmft_alignments import classification as classification_module
from llmft_alignments import cpo as cpo_module
from llmft_alignments import dpo as dpo_module
from llmft_alignments import kto as kto_module
from llmft_alignments import orpo as orpo_module
from llmft_alignments import reward as reward_module
from llmft_alignments.classification import Classification as Classifier
from llmft_alignments.cpo import Cpo, CpoObjective
from llmft_alignments.dpo import Dpo, DpoItem, DpoObjective, reranking
from llmft_alignments.gkd import Gkd
from llmft_alignments.gkd import objective as gkd_module
from llmft_alignments.gkd.objective import GkdObjective
from llmft_alignments.grpo import Grpo
from llmft_alignments.grpo.config import GroupConfig
from llmft_alignments.grpo.rollouts import (
    GroupRollout,
    GroupSampler,
    ScoredGroups,
    learnt_of,
)
from llmft_alignments.kto import Kto, KtoItem, KtoObjective
from llmft_alignments.online.diagnostics import Diagnostics
from llmft_alignments.online.scoring import Scorer
from llmft_alignments.orpo import Orpo, OrpoItem, OrpoObjective
from llmft_alignments.ppo import Ppo
from llmft_alignments.ppo.objective import PpoObjective
from llmft_alignments.ppo.rollouts import RolloutSampler
from llmft_alignments.reward import Reward, RewardObjective
from llmft_alignments.rloo import Rloo
from llmft_alignments.sft import Sft
from llmft_callbacks.ema import Ema
from llmft_callbacks.loss_watchdog import LossWatchdog
from llmft_datasets.chat import Chat
from llmft_datasets.classification import Classification as ClassificationData
from llmft_datasets.classification import Columns as ClassificationColumns
from llmft_datasets.from_stage import FromStage
from llmft_datasets.instruction import Columns as InstructionColumns
from llmft_datasets.instruction import Instruction
from llmft_datasets.jsonl import Columns as JsonlColumns
from llmft_datasets.jsonl import Jsonl
from llmft_datasets.mix import Mix
from llmft_datasets.preference import Columns as PreferenceColumns
from llmft_datasets.preference import Preference
from llmft_datasets.prompts import Columns as PromptsColumns
from llmft_datasets.prompts import Prompts
from llmft_datasets.python import Python
from llmft_datasets.triviaqa import TriviaQA
from llmft_datasets.unpaired import Columns as UnpairedColumns
from llmft_datasets.unpaired import Unpaired
from llmft_metrics.distinct import Distinct
from llmft_metrics.exact_match import ExactMatch as ExactMatchMetric
from llmft_metrics.f1 import F1
from llmft_metrics.final_number import FinalNumber as FinalNumberMetric
from llmft_metrics.rouge import Rouge
from llmft_metrics.sacre import Bleu, Chrf
from llmft_optimizers import of_bitsandbytes, of_torch, of_torchao
from llmft_optimizers.adafactor import Adafactor
from llmft_optimizers.of_schedulefree import ScheduleFreeAdamw, ScheduleFreeSgd
from llmft_rewards.cosine import Cosine
from llmft_rewards.exact_match import ExactMatch
from llmft_rewards.final_number import FinalNumber
from llmft_rewards.format import Format
from llmft_rewards.length import Length
from llmft_rewards.math_verify import MathVerify
from llmft_rewards.pattern import Pattern
from llmft_rewards.python import Python as PythonReward
from llmft_rewards.repetition import Repetition
from llmft_rewards.reward_model import RewardModel
from llmft_rewards.soft_overlong import SoftOverlong
from llmft_schedules import curves
from llmft_schedules.greedy import Greedy
from llmft_schedules.plateau import ReduceLrOnPlateau
from llmft_tasks import lm_eval
from llmft_tasks.collect import Collect
from llmft_tasks.evaluate import Evaluate
from llmft_tasks.lm_eval import LmEval
from llmft_tasks.rank import Rank
from llmft_trackers import mlflow as mlflow_module
from llmft_trackers import swanlab as swanlab_module
from llmft_trackers import trackio as trackio_module
from llmft_trackers import wandb as wandb_module
from llmft_trackers.console import Console
from llmft_trackers.jsonl import Jsonl as JsonlTracker
from llmft_trackers.mlflow import MLflow
from llmft_trackers.swanlab import SwanLab
from llmft_trackers.tensorboard import TensorBoard
from llmft_trackers.trackio import Trackio
from llmft_trackers.wandb import Wandb
from pydantic import BaseModel

from llmft.api import (
    Answer,
    ClassificationRow,
    Encoded,
    EncodedClassification,
    EncodedPair,
    EncodedPrompt,
    EncodedUnpaired,
    OtherModel,
    Progress,
    PromptRow,
    RowScores,
    RunInfo,
    SampledAnswer,
    ScoredAnswer,
    StageResult,
    TrainingSpan,
    TrainingStep,
)
from llmft.api.errors import LlmftError, WaitsForPeople
from llmft.api.method_settings import DropRows
from llmft.api.train_settings import TrainSettings
from llmft.data import table_dataset
from llmft.data.usable_rows import read_rows
from llmft.engine import stage_models
from llmft.engine.session import run_recipe
from llmft.modeling.base_model import BaseModel as BaseModelOf
from llmft.modeling.tiny_models import tiny_gpt2, tiny_llama, tiny_model_folder, tiny_tokenizer
from llmft.recipes.load import load_recipe
from llmft.recipes.sources import source_names
from llmft.registry.registry import Registry
from llmft.registry.return_checks import score_names
from llmft.system import trust
from tests.composed import composed
from tests.every_setting import Case, Lab, check, without_case
from tests.plugins.adapters.lora.test_target_names import moe
from tests.plugins.adapters.peft_method_cases import PEFT_METHODS
from tests.plugins.alignments.grpo.conftest import objective_from
from tests.plugins.alignments.ppo.test_objective import judged
from tests.plugins.alignments.test_sft_routers import weight_in_a_run

# --- adapters ------------------------------------------------------------------------------------


def attached(adapter: type, make: Callable[[], Any] = tiny_llama) -> Callable[[Any], Any]:
    return lambda config: adapter(config).attach(make())


def layer(model: Any, name: str = "q_proj") -> Any:
    return next(m for n, m in model.named_modules() if n.endswith(name) and hasattr(m, "lora_A"))


def adapted(model: Any) -> list[str]:
    return [n for n, m in model.named_modules() if hasattr(m, "lora_A")]


def lora_cases(adapter: type) -> dict[str, Case]:
    """Return the cases of LoRA's settings, which DoRA and QLoRA share."""
    on = attached(adapter)

    def rank(name: str):
        return lambda config, lab: layer(on(config), name).lora_A["default"].weight.shape[0]

    def scale(name: str):
        return lambda config, lab: float(layer(on(config), name).scaling["default"])

    def dropout(config, lab):
        return getattr(layer(on(config)).lora_dropout["default"], "p", 0.0)

    def biases(config, lab):
        """Whether trained are biases, and those of layers with no update."""
        model = attached(adapter, tiny_gpt2)(config)
        names = [n for n, p in model.named_parameters() if p.requires_grad and "bias" in n]
        return bool(names), any("ln_f" in name for name in names)

    def targets(config, lab):
        return {name.rpartition(".")[2] for name in adapted(on(config))}

    def experts(config, lab):
        names = adapter(config).peft_config(moe("mixtral")).target_parameters
        return {name.rpartition(".")[2] for name in names}

    def layers(config, lab):
        return {name.split("layers.")[1][0] for name in adapted(on(config))}

    def starts_at_zero(config, lab):
        return not layer(on(config)).lora_B["default"].weight.any()

    def whole(config, lab):
        return {
            name.split(".modules_to_save")[0].rpartition(".")[2]
            for name, p in on(config).named_parameters()
            if p.requires_grad and "modules_to_save" in name
        }

    def rows(config, lab):
        return {
            (name.split(".token_adapter")[0].rpartition(".")[2], p.shape[0])
            for name, p in on(config).named_parameters()
            if p.requires_grad and "token_adapter" in name
        }

    def rates(config, lab):
        groups = adapter(config).parameter_groups(on(config), TrainSettings(learning_rate=0.01))
        return [group["lr"] for group in groups or () if "lr" in group]

    def dtypes(config, lab):
        model = on(config)
        return adapter(config).trains_in_float32(), {
            str(p.dtype)
            for n, p in model.named_parameters()
            if p.requires_grad and "magnitude" not in n
        }

    every = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    return {
        "pure_bf16": Case(True, dtypes, (False, {"torch.bfloat16"}), was=(True, {"torch.float32"})),
        "r": Case(3, rank("q_proj"), 3, was=8),
        "lora_alpha": Case(40.0, scale("q_proj"), 40 / 8, was=16 / 8),
        "lora_dropout": Case(0.25, dropout, 0.25, was=0.0),
        "bias": Case("lora_only", biases, (True, False), was=(False, False)),
        "target_modules": Case(["q_proj", "up_*"], targets, {"q_proj", "up_proj"}, was=every),
        "exclude_modules": Case(
            ["[kv]_proj", "up_proj"], targets, every - {"k_proj", "v_proj", "up_proj"}, was=every
        ),
        "target_parameters": Case(
            ["experts.down_proj"], experts, {"down_proj"}, was={"down_proj", "gate_up_proj"}
        ),
        "use_rslora": Case(True, scale("q_proj"), 16 / math.sqrt(8), was=2.0),
        "init_lora_weights": Case("orthogonal", starts_at_zero, False, was=True),
        "modules_to_save": Case(["lm_head"], whole, {"lm_head"}, was=set()),
        "trainable_token_indices": Case(
            [3, 5], rows, {("embed_tokens", 2), ("lm_head", 2)}, was=set()
        ),
        "layers_to_transform": Case([1], layers, {"1"}, was={"0", "1"}),
        "rank_pattern": Case({"v_proj": 2}, rank("v_proj"), 2, was=8),
        "alpha_pattern": Case({"v_*": 4.0}, scale("v_proj"), 4 / 8, was=2.0),
        "loraplus_lr_ratio": Case(16.0, rates, [0.16], was=[]),
    }


def refused(adapter: type) -> Callable[[Any, Lab], set[str]]:
    """Return what looks which keys are refused for a tiny Llama."""
    return lambda config, lab: {path[0] for path, *_ in adapter(config).check(tiny_llama())}


def soft_cases(adapter: type) -> dict[str, Case]:
    """Return the cases of what every soft prompt has: facts of a model are held against it."""
    see = refused(adapter)
    facts = {"token_dim": 33, "num_layers": 5, "num_attention_heads": 3}
    return {
        "num_virtual_tokens": Case(
            5, lambda config, lab: attached(adapter)(config).n_virtual, 5, was=20
        ),
        "num_transformer_submodules": Case(2, see, {"num_transformer_submodules"}, was=set()),
        **{name: Case(value, see, {name}, was=set()) for name, value in facts.items()},
    }


def encoder(adapter: type) -> Callable[[Any], Any]:
    return lambda config: attached(adapter)(config).encoder


def lstm(config) -> Any:
    return next(m for m in encoder(PTuning)(config).modules() if isinstance(m, torch.nn.LSTM))


def kinds(adapter: type) -> Callable[[Any, Lab], bool]:
    return lambda config, lab: any(
        isinstance(m, torch.nn.Tanh) for m in encoder(adapter)(config).modules()
    )


def width(adapter: type) -> Callable[[Any, Lab], int]:
    return lambda config, lab: max(
        m.out_features for m in encoder(adapter)(config).modules() if isinstance(m, torch.nn.Linear)
    )


def first_width(config, lab: Lab) -> int:
    layers = [m for m in encoder(Prefix)(config).modules() if isinstance(m, torch.nn.Linear)]
    return layers[0].out_features


def started(config, lab: Lab) -> str:
    """Return as what the virtual tokens start: 'text', 'words' of the vocabulary, or 'random'."""
    model = tiny_llama()
    model.config._name_or_path = model.name_or_path = ""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokens = PromptTuning(config).attach(model).prompts()
    table = model.get_input_embeddings().weight
    found = [(row[None] == table).all(1).nonzero().flatten().tolist() for row in tokens]
    if not all(found):
        return "random"
    said = bytes(ids[0] for ids in found if ids[0] < 256).decode(errors="replace")
    return said if said.isascii() and said.isprintable() else "words"


def tokenizer_folder(lab: Lab) -> str:
    folder = lab.folder / "words"
    if not folder.exists():
        tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def offload(config, lab: Lab) -> Any:
    """What PEFT is told; where there is no GPU, `check` refuses it by name."""
    return Dora(config).peft_config(tiny_llama()).runtime_config.ephemeral_gpu_offload


def loaded(name: str) -> Callable[[Any, Lab], Any]:
    return lambda config, lab: QLora(config).load_options()[name]


def of_full(config, lab: Lab) -> list[str]:
    """The weights that are trained, by the last part that tells them apart."""
    model = Full(config).attach(tiny_llama())
    return [n for n, p in model.named_parameters() if p.requires_grad]


def shards(config, lab: Lab) -> int:
    folder = lab.folder / config.max_shard_size
    adapter = Full(config)
    adapter.save(adapter.attach(tiny_llama()), folder)
    return len(list(folder.glob("*.safetensors")))


PROMPT = {"prompt_tuning_init": "TEXT", "num_virtual_tokens": 4}
ADAPTERS: dict[type, dict[str, Case]] = {
    Lora: lora_cases(Lora),
    Dora: lora_cases(Dora) | {"ephemeral_gpu_offload": Case(True, offload, True, was=False)},
    QLora: lora_cases(QLora)
    | {
        "load_in_4bit": Case(True, loaded("load_in_4bit"), True, alone=True),
        "bnb_4bit_quant_type": Case("fp4", loaded("bnb_4bit_quant_type"), "fp4", was="nf4"),
        "bnb_4bit_use_double_quant": Case(
            False, loaded("bnb_4bit_use_double_quant"), False, was=True
        ),
        "bnb_4bit_compute_dtype": Case("float16", loaded("bnb_4bit_compute_dtype"), "float16"),
    },
    Prefix: soft_cases(Prefix)
    | {
        "prefix_projection": Case(True, kinds(Prefix), True, was=False),
        "encoder_hidden_size": Case(
            77, first_width, 77, also={"prefix_projection": True}, was=2 * 8
        ),
    },
    PTuning: soft_cases(PTuning)
    | {
        "encoder_reparameterization_type": Case(
            "LSTM",
            lambda c, lab: any(isinstance(m, torch.nn.LSTM) for m in encoder(PTuning)(c).modules()),
            True,
            was=False,
        ),
        "encoder_hidden_size": Case(77, width(PTuning), 77, was=32),
        "encoder_num_layers": Case(
            3, lambda c, lab: lstm(c).num_layers, 3, {"encoder_reparameterization_type": "LSTM"}, 2
        ),
        "encoder_dropout": Case(
            0.5, lambda c, lab: lstm(c).dropout, 0.5, {"encoder_reparameterization_type": "LSTM"}
        ),
    },
    Full: {
        "trainable_parameters": Case(
            ["lm_head", "model.norm.*"], of_full, ["model.norm.weight", "lm_head.weight"]
        ),
        "freeze_parameters": Case(
            ["model.layers", "embed_*"], of_full, ["model.norm.weight", "lm_head.weight"]
        ),
        "freeze_trainable_layers": Case(
            1, of_full, ["model.layers.1.self_attn.q_proj.weight", "lm_head.weight"],
            also={"trainable_parameters": ["q_proj", "lm_head"]},
            was=[f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 1)] + ["lm_head.weight"],
        ),
        "pure_bf16": Case(True, lambda c, lab: Full(c).trains_in_float32(), False, was=True),
        "max_shard_size": Case("50KB", shards, 4, was=1),
    },
    PromptTuning: soft_cases(PromptTuning)
    | {
        "prompt_tuning_init": Case(
            "SAMPLE_VOCAB", lambda c, lab: started(c, lab) != "random", True, was=False
        ),
        "prompt_tuning_init_text": Case(
            "abcd",
            lambda c, lab: started(
                c.model_copy(update={"tokenizer_name_or_path": tokenizer_folder(lab)}), lab
            ),
            "abcd",
            also=PROMPT, alone=True,
        ),
        "tokenizer_name_or_path": Case(
            "nowhere/at-all", refused(PromptTuning), {"tokenizer_name_or_path"},
            also={**PROMPT, "prompt_tuning_init_text": "abcd"}, was={"prompt_tuning_init"},
        ),
    },
} | PEFT_METHODS  # fmt: skip

# --- alignments ----------------------------------------------------------------------------------

ROW = Encoded((1, 2, 3, 4), (-100, -100, 3, 4), "row")
RATIOS = ((0.5, -0.25), (-1.0, 0.75))


def dpo_loss(config, lab: Lab) -> float:
    """The loss of two pairs with these log-ratios, and two tokens in each answer."""
    lab.patch.setattr(dpo_module, "pair_logps", lambda *_: torch.tensor(RATIOS))
    items = [DpoItem(ROW, ROW, 0, None, "row", reference=(0.0, 0.0))] * 2
    return float(DpoObjective(config, share=False).loss(None, items)[0])


def over_pairs(loss: Callable[[float, float], float]) -> float:
    return sum(loss(won, lost) for won, lost in RATIOS)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def discopop(tau: float, gap: float) -> float:
    share = sigmoid(gap / tau)
    return softplus(-gap) * (1 - share) + math.exp(-gap) * share


def alpha(ratio: float, coefficient: float) -> float:
    return math.exp((coefficient - 1) * ratio) / (coefficient - 1)


def dropout_in_training(alignment: type) -> Callable[[Any, Lab], Any]:
    """Return what looks whether the base's dropout acts while an alignment trains."""

    def see(config, lab: Lab) -> bool:
        base = tiny_llama()
        base.add_module("noise", torch.nn.Dropout(0.5))
        pair = EncodedPair(ROW, ROW, 0, None, "row")
        seen: list[bool] = []

        def fit(items, objective):
            base.train()
            ones = torch.ones(64)
            seen.append(bool((base.noise(ones) != ones).any()))
            return StageResult("policy")

        lab.patch.setattr("llmft_alignments.dpo.reference.reference_logps",
                          lambda context, pairs: torch.zeros(len(pairs), 2))  # fmt: skip
        lab.patch.setattr("llmft_alignments.dpo.reference.reference_row_logps",
                          lambda context, rows, file: torch.zeros(len(rows)))  # fmt: skip
        answer = EncodedUnpaired(ROW.input_ids, ROW.labels, "row", True)
        sampler = SimpleNamespace(model=base, reference=base)
        if hasattr(alignment, "_sampler_of"):
            lab.patch.setattr(alignment, "_sampler_of", lambda self, context: sampler)
        context = composed(
            name="s", seed=0, folder=lab.folder, rows=lambda: [0], held_out=lambda: [],
            encode_pairs=lambda rows: [pair, pair],
            encode_unpaired=lambda rows: [answer, answer], max_length=None,
            encode=lambda rows: [ROW], other_model=lambda asked: base, planned=False,
            tokenizer=tiny_tokenizer(), encode_prompts=lambda rows, room: [],
            shares_prompts=False, starts_as_reference=False, model=base, fit=fit, fit_online=fit,
            note=lambda text: None, progress=lambda *_: None,
        )  # fmt: skip
        alignment(config).train(context)
        lab.patch.undo()
        return seen[0]

    return see


IDS = (1, 2, 3, 4)


def sft_loss(config, lab: Lab) -> float:
    """The loss of a row of which the last three tokens are trained on."""
    seen = []
    context = composed(rows=lambda: [0], encode=lambda rows: [Encoded(IDS, IDS, "row")],
                       model=tiny_llama(),
                       fit=lambda items, objective: seen.append((items, objective)))  # fmt: skip
    Sft(config).train(context)
    ((items, objective),) = seen
    return float(objective.loss(tiny_llama(), items)[0].detach())


def of_sft(loss: Callable[[Any, int], Any]) -> float:
    """The sum of a loss of (log-probabilities, label) over them, from plain logits."""
    with torch.no_grad():
        logps = tiny_llama()(input_ids=torch.tensor([IDS])).logits[0].log_softmax(-1)
    return float(sum(loss(row, label) for row, label in zip(logps[:-1], IDS[1:], strict=True)))


SFT = {
    "loss_type": Case(
        "dft", sft_loss, of_sft(lambda row, label: -row[label] * row[label].exp()),
        was=of_sft(lambda row, label: -row[label]),
    ),
    "label_smoothing_factor": Case(
        0.25, sft_loss, of_sft(lambda row, label: -0.75 * row[label] - 0.25 * row.mean())
    ),
    "router_aux_loss_coef": Case(
        0.5, lambda config, lab: weight_in_a_run(moe("mixtral"), **config.model_dump(
            include={"router_aux_loss_coef"})), 0.5, was=0.0,
    ),
}  # fmt: skip

DPO = {
    "disable_dropout": Case(False, dropout_in_training(Dpo), True, was=False),
    "beta": Case(0.7, dpo_loss, over_pairs(lambda w, r: softplus(-0.7 * (w - r)))),
    "loss_type": Case(["hinge"], dpo_loss, over_pairs(lambda w, r: max(0, 1 - 0.1 * (w - r)))),
    "loss_weights": Case([3.0], dpo_loss, 3 * over_pairs(lambda w, r: softplus(-0.1 * (w - r)))),
    "label_smoothing": Case(
        0.2, dpo_loss,
        over_pairs(lambda w, r: 0.8 * softplus(-0.1 * (w - r)) + 0.2 * softplus(0.1 * (w - r))),
    ),
    "f_divergence_type": Case(
        "forward_kl", dpo_loss,
        over_pairs(lambda w, r: softplus(-0.1 * (math.exp(-r) - math.exp(-w)))),
    ),
    "f_alpha_divergence_coef": Case(
        2.5, dpo_loss, over_pairs(lambda w, r: softplus(-0.1 * (alpha(w, 2.5) - alpha(r, 2.5)))),
        also={"f_divergence_type": "alpha_divergence"},
        was=over_pairs(lambda w, r: softplus(-0.1 * (alpha(w, 0.5) - alpha(r, 0.5)))),
    ),
    "discopop_tau": Case(
        0.5, dpo_loss, over_pairs(lambda w, r: discopop(0.5, 0.1 * (w - r))),
        also={"loss_type": ["discopop"]},
        was=over_pairs(lambda w, r: discopop(0.05, 0.1 * (w - r))),
    ),
}  # fmt: skip

LOGPS = ((-1.0, -3.0), (-2.0, -1.0))


def cpo_loss(config, lab: Lab) -> float:
    """The loss of two pairs with these log-likelihoods, and two tokens in each answer."""
    lab.patch.setattr(cpo_module, "pair_logps", lambda *_: torch.tensor(LOGPS))
    pairs = [EncodedPair(ROW, ROW, 0, None, "row")] * 2
    return float(CpoObjective(config, share=False).loss(None, pairs)[0])


def of_cpo(loss: Callable[[float], float], nll: float = 1.0, shape: Callable = float) -> float:
    return sum(loss(shape(won) - shape(lost)) for won, lost in LOGPS) + nll * 2 * 3 / 4


CPO = {
    "disable_dropout": Case(False, dropout_in_training(Cpo), True, was=False),
    "beta": Case(0.7, cpo_loss, of_cpo(lambda gap: softplus(-0.7 * gap))),
    "loss_type": Case(
        "simpo", cpo_loss, of_cpo(lambda gap: softplus(-(0.1 * gap / 2 - 0.5))),
        was=of_cpo(lambda gap: softplus(-0.1 * gap)),
    ),
    "cpo_alpha": Case(0.25, cpo_loss, of_cpo(lambda gap: softplus(-0.1 * gap), nll=0.25)),
    "simpo_gamma": Case(
        1.5, cpo_loss, of_cpo(lambda gap: softplus(-(0.1 * gap / 2 - 1.5))),
        also={"loss_type": "simpo"},
    ),
    "label_smoothing": Case(
        0.2, cpo_loss, of_cpo(lambda gap: 0.8 * softplus(-0.1 * gap) + 0.2 * softplus(0.1 * gap))
    ),
    "alpha": Case(
        0.5, cpo_loss,
        of_cpo(lambda gap: softplus(-0.1 * gap), shape=lambda p: (1 - math.exp(-0.5 * p)) / 0.5),
    ),
}  # fmt: skip

KL = 0.4


def kto_loss(config, lab: Lab) -> float:
    """The loss of a desirable answer of log-ratio 0.5 and one that is not, of -1; the KL is 0.4."""
    ratios = {True: torch.tensor([0.5, -1.0]), False: torch.tensor([KL + 0.1, KL - 0.1])}
    lab.patch.setattr(kto_module, "row_logps", lambda model, rows: ratios[rows[0] is items[0]])
    other = ROW if config.loss_type == "kto" else None
    items = [
        KtoItem(ROW.input_ids, ROW.labels, "row", label, 0.0, other) for label in (True, False)
    ]
    return float(KtoObjective(config).loss(None, items)[0])


def of_kto(beta: float = 0.1, good: float = 1.0, bad: float = 1.0, kl: float = KL) -> float:
    return good * (1 - sigmoid(beta * (0.5 - kl))) + bad * (1 - sigmoid(beta * (kl + 1.0)))


KTO = {
    "disable_dropout": Case(False, dropout_in_training(Kto), True, was=False),
    "loss_type": Case("apo_zero_unpaired", kto_loss, of_kto(kl=0.0), was=of_kto()),
    "beta": Case(0.7, kto_loss, of_kto(beta=0.7)),
    "desirable_weight": Case(2.5, kto_loss, of_kto(good=2.5)),
    "undesirable_weight": Case(0.25, kto_loss, of_kto(bad=0.25)),
}

NLL = (0.5, 1.5, 0.25, 0.75)  # the chosen answer's two tokens, and the rejected one's


def orpo_loss(config, lab: Lab) -> float:
    """The loss of one pair, of answers of two tokens, and a prompt whose second one costs 2."""
    asked = config.learn_prompt
    nll = torch.tensor((2.0, *NLL) if asked else NLL)
    rows = torch.tensor([0] * (3 if asked else 2) + [1, 1])
    lab.patch.setattr(orpo_module, "pair_nll", lambda *_: (nll, rows))
    pair = EncodedPair(ROW, ROW, 0, None, "row")
    item = OrpoItem.of(pair, asked)
    item = OrpoItem(*(getattr(item, n) for n in EncodedPair.__slots__), item.prompt, (-1.0,) * 4)
    return float(OrpoObjective(config, share=False).loss(None, [item])[0])


def log_odds(mean_nll: float) -> float:
    return -mean_nll - math.log(1 - math.exp(-mean_nll))


def ranked_by(config, lab: Lab) -> list[str]:
    """Which stage's reward model ranks the answers before training."""
    asked: list[str] = []
    pair = EncodedPair(ROW, ROW, 0, None, "row")
    lab.patch.setattr(
        reranking, "reranked", lambda context, pairs, name: asked.append(name) or pairs
    )
    context = composed(
        name="s", rows=lambda: [0], encode_pairs=lambda rows: [pair], shares_prompts=False,
        fit=lambda items, objective: None, model=tiny_llama(),
    )  # fmt: skip
    Orpo(config).train(context)
    return asked


ODDS = softplus(-(log_odds(1.0) - log_odds(0.5)))
ORPO = {
    "disable_dropout": Case(False, dropout_in_training(Orpo), True, was=False),
    "beta": Case(0.7, orpo_loss, 1.0 + 0.7 * ODDS, was=1.0 + 0.1 * ODDS),
    "learn_prompt": Case(True, orpo_loss, 4 / 3 + 0.1 * ODDS),
    "kl_coef": Case(
        0.4, orpo_loss,
        1.0 + 0.1 * ODDS + 0.4 * sum(math.exp(nll - 1) - (nll - 1) - 1 for nll in NLL) / 2 / 2,
    ),
    "reward_model": Case("judge", ranked_by, ["judge"], was=[]),
}  # fmt: skip

REWARDS = torch.tensor([[2.0, 0.5], [1.0, 1.5]])


def reward_loss(config, lab: Lab) -> float:
    lab.patch.setattr(reward_module, "pair_rewards", lambda *_: REWARDS)
    pairs = [EncodedPair(ROW, ROW, 0, 1.25, "row")] * 2
    return float(RewardObjective(config, share=False).loss(None, pairs)[0])


REWARD = {
    "disable_dropout": Case(False, dropout_in_training(Reward), True, was=False),
    "center_rewards_coefficient": Case(
        0.3, reward_loss, softplus(-1.5) + softplus(0.5) + 0.3 * (2.5**2 + 2.5**2)
    ),
    "use_margin": Case(True, reward_loss, softplus(-1.5 + 1.25) + softplus(0.5 + 1.25)),
}


FOUR = [
    ClassificationRow(word, label, None, f"row {n}")
    for n, (word, label) in enumerate([("a", "x"), ("b", "x"), ("c", "x"), ("d", "y")])
]
LOGITS = {"a": [0.0, 1.0], "b": [0.0, 1.0], "c": [0.0, 1.0], "d": [0.0, 1.0]}


def classified(config, lab: Lab) -> tuple[float, list[str]]:
    """The step's loss of four rows whose logits are 0 and 1 each, and the classes' names."""
    made = Classifier(config)
    seen: list[float] = []

    def fit(items, objective):
        loss, _ = objective.loss(None, items)
        seen.append(float(loss) / objective.weight(items))
        return StageResult("classifier")

    def logits(model, items):
        return torch.tensor([[0.0, 1.0]] * len(items))

    lab.patch.setattr(classification_module, "class_logits", logits)
    made.train(composed(
        name="s", folder=lab.folder, rows=lambda: FOUR, held_out=lambda: [], fit=fit,
        tokenizer=tiny_tokenizer(),
        encode_classification=lambda rows: [
            EncodedClassification((1,), (-100,), row.origin, row.label) for row in rows
        ],
    ))  # fmt: skip
    return pytest.approx(seen[0], rel=1e-5), made.names


CLASSIFIED = (3 * softplus(1.0) + softplus(-1.0)) / 4
CLASSIFICATION = {
    "problem_type": Case(
        "multi_label_classification", classified,
        ((3 * (math.log(2) + softplus(1.0)) + math.log(2) + softplus(-1.0)) / 8, ["x", "y"]),
        was=(CLASSIFIED, ["x", "y"]),
    ),
    "id2label": Case(
        ["y", "x"], classified, ((3 * softplus(-1.0) + softplus(1.0)) / 4, ["y", "x"]),
        was=(CLASSIFIED, ["x", "y"]),
    ),
    "class_weights": Case(
        "balanced", classified, ((softplus(1.0) + softplus(-1.0)) / 2, ["x", "y"]),
        was=(CLASSIFIED, ["x", "y"]),
    ),
}  # fmt: skip


def objective(config) -> PpoObjective:
    return PpoObjective(config, None, Diagnostics(lambda text: None), seed=0)


def step(name: str) -> Callable[[Any, Lab], list[float]]:
    """Return what gives one number of each token of two answers that are given."""

    def see(config, lab: Lab) -> list[float]:
        made = objective(config).rollouts(judged())
        return torch.cat([getattr(one, name) for one in made]).tolist()

    return see


def next_kl_coef(config, lab: Lab) -> float:
    """The coefficient after a step of two answers that lie 1.25 nats from the reference."""
    made = objective(config)
    made.rollouts(judged())
    made.step_metrics()
    return made.kl_coef


def update(config, lab: Lab) -> float:
    """The loss of an update of two tokens, of ratios 1.5 and 0.5, with advantage 1 each.

    The first one's value has moved from 0 to where it should be, 1: it counts only so far.
    """
    from llmft_alignments.ppo import objective as module

    stats = SimpleNamespace(
        logps_N=torch.tensor([1.5, 0.5]).log(), entropy_N=torch.tensor([0.5, 1.0]), hidden_ND=None
    )
    lab.patch.setattr(module, "token_stats", lambda *_, **__: stats)
    lab.patch.setattr(module, "values", lambda *_: torch.tensor([1.0, 0.0]))
    zeros, ones = torch.zeros(2), torch.ones(2)
    batch = [SimpleNamespace(logps=zeros, values=zeros, advantages=ones, returns=ones, nuclei=())]
    return float(objective(config).loss(None, batch)[0])


def asked_to_draw(name: str) -> Callable[[Any, Lab], Any]:
    """Return what looks how a context is asked for answers."""

    def see(config, lab: Lab) -> Any:
        asked: dict[str, Any] = {}

        def decode(prompts, params, **options):
            asked.update(options, response_length=params.max_new_tokens, top_k=params.top_k)
            asked.update(temperature=params.temperature, top_p=params.top_p)
            asked["more_stops"] = tuple(params.stop_token_ids)
            return []

        context = composed(
            model=None, tokenizer=tiny_tokenizer(), decode=decode, reference_model=lambda: None,
            load_stage=lambda stage: f"the model of {stage}", reward_function=lambda block: block,
        )  # fmt: skip
        if isinstance(config, GroupConfig):
            made = GroupSampler(config, context, needs_logps=False)
        else:
            made = RolloutSampler(config, context)
            asked.update(reward_model=made.reward_model, reward=[*made.scorer.functions, None][0])
        made.sample_rollouts([EncodedPrompt((1,), (-100,), "row", "p", ())], (0,), [0])
        asked["rewards"] = [function.method for function in made.scorer.functions]
        return asked[name]

    return see


def value_rate(config, lab: Lab) -> float:
    model = tiny_llama()
    alignment = Ppo(config)
    alignment.extend(model)
    (group,) = alignment.parameter_groups(model, TrainSettings())
    return group["lr"]


def updates(config, lab: Lab) -> list[int]:
    return [len(part) for part in objective(config).updates(6, 0)]


def distilled(name: str) -> Callable[[Any, Lab], Any]:
    """Return what looks what a step of distillation asks for."""

    def see(config, lab: Lab) -> Any:
        asked: dict[str, Any] = {"writers": []}

        def decode(prompts, params, *, model, numbers, **options):
            asked.update(options, max_new_tokens=params.max_new_tokens, top_k=params.top_k)
            asked.update(temperature=params.temperature, top_p=params.top_p)
            asked["writers"].append(("the model" if model is None else "the teacher", len(numbers)))
            return [Answer([5], [], True) for _ in prompts]

        def apart(model, other, rows, beta, divergence_temperature):
            asked.update(beta=beta, divergence_temperature=divergence_temperature)
            return SimpleNamespace(nats_N=torch.zeros(1))

        lab.patch.setattr(gkd_module, "divergence", apart)
        teacher = tiny_llama(1)
        context = composed(
            model=tiny_llama(), decode=decode, seed=0, planned=False, max_length=None,
            other_model=lambda block: teacher,
        )  # fmt: skip
        made = GkdObjective(config, context)
        made.sample_rollouts([ROW] * 8, range(8), 0, lambda: False)
        made.loss(None, [ROW])
        return asked[name]

    return see


GKD = {
    "lmbda": Case(1.0, distilled("writers"), [("the model", 8)]),
    "seq_kd": Case(True, distilled("writers"), [("the teacher", 8)], also={"lmbda": 0.0}, was=[]),
    **{
        name: Case(value, distilled(name), value)
        for name, value in [
            ("beta", 0.2), ("temperature", 0.4), ("divergence_temperature", 3.0), ("top_p", 0.7),
            ("top_k", 9), ("max_new_tokens", 31),
        ]
    },
    "disable_dropout": Case(False, dropout_in_training(Gkd), True, was=False),
    "local_rollout_forward_batch_size": Case(3, distilled("batch_size"), 3, was=64),
}  # fmt: skip

RULE = Length.Config(method="length", target=4)
VALUE = 0.5 * 0.8**2 + 0.5
PURE = {
    "center_values": False, "whiten_advantages": False, "kl_coef": 0.0, "lam": 1.0, "gamma": 1.0,
}  # fmt: skip
LATER = {"adap_kl_ctrl": True, "horizon": 4, "target": 1.0, "kl_coef": 0.2}
PPO = {
    "disable_dropout": Case(False, dropout_in_training(Ppo), True, was=False),
    "reward_model": Case(
        "judge", asked_to_draw("reward_model"), "the model of judge", also={"reward": RULE}
    ),
    "reward": Case(
        RULE, lambda c, lab: getattr(asked_to_draw("reward")(c, lab), "method", None), "length"
    ),
    "num_ppo_epochs": Case(2, updates, [6, 6], was=[6, 6, 6, 6]),
    "num_mini_batches": Case(3, updates, [2, 2, 2], also={"num_ppo_epochs": 1}, was=[6]),
    "num_generations": Case(3, lambda c, lab: objective(c).items_per_prompt, 3, was=1),
    "response_length": Case(7, asked_to_draw("response_length"), 7, was=53),
    "temperature": Case(1.3, asked_to_draw("temperature"), 1.3, was=0.7),
    "top_p": Case(0.6, asked_to_draw("top_p"), 0.6, was=1.0),
    "stop_token": Case("e", asked_to_draw("more_stops"), (ord("e"),), was=()),
    "local_rollout_forward_batch_size": Case(5, asked_to_draw("batch_size"), 5, was=64),
    "missing_eos_penalty": Case(
        0.75, step("returns"), [2.0, 2.0, 2.0, -1.75, -1.75], also=PURE, was=[2.0] * 3 + [-1.0] * 2
    ),
    "kl_coef": Case(0.2, step("returns"), [1.7, 1.8, 1.9, -1.2, -1.1], also=PURE),
    "kl_estimator": Case(
        "k3", lambda c, lab: step("returns")(c, lab)[2], 2 - 0.2 * (math.exp(-0.5) - 0.5),
        also={**PURE, "kl_coef": 0.2}, was=1.9,
    ),
    "adap_kl_ctrl": Case(
        True, next_kl_coef, 0.05 * (1 - 0.2 * 2 / 10_000), also={"kl_coef": 0.05}, was=0.05
    ),
    "target": Case(1.3, next_kl_coef, 0.2 * (1 + (1.25 / 1.3 - 1) * 2 / 4), also=LATER),
    "horizon": Case(8, next_kl_coef, 0.2 * (1 + 0.2 * 2 / 8), also=LATER),
    "cliprange": Case(0.4, update, -1.4 - 0.5 + 0.1 * VALUE, was=-1.2 - 0.5 + 0.1 * VALUE),
    "cliprange_value": Case(0.4, update, -1.7 + 0.1 * (0.5 * 0.6**2 + 0.5)),
    "vf_coef": Case(0.8, update, -1.7 + 0.8 * VALUE),
    "entropy_coef": Case(0.3, update, -1.7 + 0.1 * VALUE - 0.3 * 1.5),
    "value_learning_rate": Case(0.02, value_rate, 0.02, was=0.1 / 32),
    "center_values": Case(
        False, step("values"), [0.1, 0.4, 0.9, -0.3, 0.5], also={"kl_coef": 0.0, "lam": 0.9}
    ),
    "gamma": Case(0.5, step("returns"), [0.5, 1.0, 2.0, -0.5, -1.0], also=PURE),
    "lam": Case(0.0, step("returns"), [0.4, 0.9, 2.0, 0.5, -1.0], also=PURE),
    "whiten_advantages": Case(
        False, step("advantages"), [1.9, 1.6, 1.1, -0.7, -1.5],
        also={"center_values": False, "kl_coef": 0.0, "lam": 1.0},
    ),
    "whiten_rewards": Case(
        True, lambda c, lab: step("returns")(c, lab)[2] - step("returns")(c, lab)[4],
        3 / math.sqrt(1.2), also={**PURE, "gamma": 1e-9}, was=3.0,
    ),
    "reward_clip": Case(1.5, step("returns"), [1.5, 1.5, 1.5, -1.0, -1.0], also=PURE),
    "reward_scaling": Case(
        True, lambda c, lab: step("returns")(c, lab)[0], 2 / math.sqrt(4.5), also=PURE, was=2.0
    ),
    "target_kl": Case(
        0.1,
        lambda c, lab: [objective(c).should_continue({"approx_kl": kl}) for kl in (0.149, 0.151)],
        [True, False], was=[True, True],
    ),
}  # fmt: skip


def group(alignment: type) -> Callable[[Any], Any]:
    return lambda config: objective_from(alignment(config), function=lambda block: Length(RULE))


def group_updates(alignment: type) -> Callable[[Any, Lab], list[int]]:
    return lambda config, lab: [len(part) for part in group(alignment)(config).updates(48, 0)]


def group_advantages(alignment: type) -> Callable[[Any, Lab], list[float]]:
    """Return what gives the advantages of two groups of two, whose second reward weighs 2.

    The rewards are 1, 0, 2 and 2, and each answer lies a nat more than the one before from its
    reference: 0, 1, 2 and 3.
    """

    def see(config, lab: Lab) -> list[float]:
        scores = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
        given = ScoredGroups(
            [], [Answer([5], [], ended=place < 3) for place in range(4)], [], scores,
            torch.tensor([1.0, 0.0, 2.0, 2.0]),
            [torch.tensor([0.0])] * 4, [torch.tensor([-float(place)]) for place in range(4)],
        )  # fmt: skip
        return alignment(config).rule().advantages(given, [1.0, 2.0]).tolist()

    return see


def group_loss(alignment: type) -> Callable[[Any, Lab], float]:
    """Return what gives the loss of an answer of two tokens, and of one that has no end.

    Their ratios are 1.5 and 0.5, with an advantage of 1, and 2, with one of -1.
    """

    def see(config, lab: Lab) -> float:
        stats = SimpleNamespace(
            logps_N=torch.tensor([1.5, 0.5, 2.0]).log(), row_N=torch.tensor([0, 0, 1]),
            entropy_N=torch.tensor([0.5, 1.0, 0.75]),
        )  # fmt: skip
        ends = [Answer([2, 3], [], True), Answer([2], [], False)]
        first, second = learnt_of(ends, config)
        batch = [
            GroupRollout((1, 2, 3), (-100, 2, 3), "", 1.0, None, torch.zeros(2), first, 1.5),
            GroupRollout((1, 2), (-100, 2), "", -1.0, None, torch.zeros(1), second, 1.5),
        ]
        rule = alignment(config).rule()
        return float(rule.loss(stats, torch.zeros(3), batch)[0]) / rule.weight(batch)

    return see


def slow_reward(alignment: type) -> Callable[[Any, Lab], str]:
    """Return what says how a reward ends that takes a tenth of a second."""

    class Slow(Length):
        def score_batch(self, batch):
            time.sleep(0.1)
            return [0.0 for _ in batch]

    def see(config, lab: Lab) -> str:
        made = objective_from(alignment(config), function=lambda block: Slow(RULE))
        try:
            made.sampler.scorer.scores([], [], [])
        except LlmftError as error:
            return error.faults[0].code
        return "scored"

    return see


def group_cases(alignment: type, generations: int) -> dict[str, Case]:
    """Return the cases of what GRPO and RLOO share."""
    each = group(alignment)
    draws = {
        "max_completion_length": Case(7, asked_to_draw("response_length"), 7, was=512),
        "temperature": Case(1.3, asked_to_draw("temperature"), 1.3, was=1.0),
        "top_p": Case(0.6, asked_to_draw("top_p"), 0.6, was=1.0),
        "top_k": Case(9, asked_to_draw("top_k"), 9, was=0),
        "stop_token": Case("e", asked_to_draw("more_stops"), (ord("e"),), was=()),
        "local_rollout_forward_batch_size": Case(5, asked_to_draw("batch_size"), 5, was=64),
        "rewards": Case([RULE, RULE], asked_to_draw("rewards"), ["length", "length"]),
    }
    return draws | {
        "disable_dropout": Case(False, dropout_in_training(alignment), True, was=False),
        "reward_timeout_seconds": Case(0.02, slow_reward(alignment), "E119", was="scored"),
        "num_generations": Case(
            4, lambda c, lab: each(c).items_per_prompt, 4, was=generations
        ),
        "old_logps_dropout": Case(
            True, lambda c, lab: alignment(c).rule().config.needs_old_logps, True,
            also={"disable_dropout": False}, was=False,
        ),
        "num_iterations": Case(2, group_updates(alignment), [48, 48], was=[48]),
        "steps_per_generation": Case(3, group_updates(alignment), [16, 16, 16], was=[48]),
    }  # fmt: skip


def k3(ratio: float) -> float:
    return 1 / ratio - 1 + math.log(ratio)


def soft(ratio: float, heat: float) -> float:
    return 4 / heat * sigmoid(heat * (ratio - 1))


SEEN = group_loss(Grpo)
PER_ANSWER = {"loss_type": "grpo", "epsilon_high": 0.2}
SAPO = {"loss_type": "sapo", "epsilon_high": 0.2}
PAIRWISE = {"num_generations": 2}
HALF = 0.5 / (math.sqrt(0.5) + 1e-4)
GRPO = group_cases(Grpo, 8) | {
    "loss_type": Case("grpo", SEEN, ((-1.2 - 0.5) / 2 + 2) / 2, was=(-1.2 - 0.5 + 2) / 3),
    "epsilon": Case(0.4, SEEN, (-1.4 - 0.5 + 2) / 3),
    "epsilon_high": Case(0.3, SEEN, (-1.3 - 0.5 + 2) / 3),
    "delta": Case(1.7, SEEN, (-1.2 - 0.5 + 1.7) / 3),
    "beta": Case(
        0.2, SEEN, (0.3 + 0.2 * sum(ratio * k3(ratio) for ratio in (1.5, 0.5, 2.0))) / 3, was=0.1
    ),
    "use_bias_correction_kl": Case(
        False, SEEN, (0.3 + 0.2 * sum(map(k3, (1.5, 0.5, 2.0)))) / 3, also={"beta": 0.2}
    ),
    "token_kl_max": Case(
        0.1, SEEN, (0.3 + 0.2 * sum(min(k3(ratio), 0.1) for ratio in (1.5, 0.5, 2.0))) / 3,
        also={"beta": 0.2, "use_bias_correction_kl": False},
    ),
    "importance_sampling_level": Case(
        "sequence", SEEN, (2 - math.sqrt(0.75)) / 2, also=PER_ANSWER, was=0.575
    ),
    "sapo_temperature_pos": Case(
        2.0, SEEN, (soft(2, 1.05) - (soft(1.5, 2) + soft(0.5, 2)) / 2) / 2, also=SAPO
    ),
    "sapo_temperature_neg": Case(
        3.0, SEEN, (soft(2, 3) - (soft(1.5, 1) + soft(0.5, 1)) / 2) / 2, also=SAPO
    ),
    "mask_truncated_completions": Case(True, SEEN, -1.7 / 3, was=0.1),
    "entropy_coef": Case(0.3, SEEN, 0.1 - 0.3 * 0.75, was=0.1),
    "scale_rewards": Case(
        "none", group_advantages(Grpo), [0.5, -0.5, 0.0, 0.0], also=PAIRWISE,
        was=[HALF, -HALF, 0.0, 0.0],
    ),
    "multi_objective_aggregation": Case(
        "normalize_then_sum", lambda c, lab: [round(a, 3) for a in group_advantages(Grpo)(c, lab)],
        [0.866, -0.866, 0.866, -0.866], also=PAIRWISE,
    ),
}  # fmt: skip
LEFT = group_loss(Rloo)
WIDE = 1 / (math.sqrt(2 / 3) + 1e-4)
RLOO = group_cases(Rloo, 2) | {
    # 1 - 0, and 2 - 0.3 * 2 less 2 - 0.3 * 3.
    "beta": Case(
        0.3, group_advantages(Rloo), [1.3, -1.3, 0.3, -0.3], was=[1.05, -1.05, 0.05, -0.05]
    ),
    "normalize_advantages": Case(
        True, group_advantages(Rloo), [WIDE, -WIDE, 0.0, 0.0],
        also={"beta": 0.0}, was=[1.0, -1.0, 0.0, 0.0],
    ),
    "reward_clip_range": Case(
        [0.25, 5.0], group_advantages(Rloo), [0.75, -0.75, 0.0, 0.0], also={"beta": 0.0}
    ),
    "epsilon": Case(0.3, LEFT, (-0.75 + 2) / 2, also={"epsilon_high": 0.2}, alone=True),
    "epsilon_high": Case(4.0, LEFT, (-0.75 + 2) / 2, alone=True),
    "mask_truncated_completions": Case(True, LEFT, (-0.75 + 1) / 2, was=(-0.75 + 2) / 2),
}  # fmt: skip


ALIGNMENTS: dict[type, dict[str, Case]] = {
    Sft: SFT, Dpo: DPO, Orpo: ORPO, Kto: KTO, Cpo: CPO, Reward: REWARD, Ppo: PPO, Grpo: GRPO,
    Rloo: RLOO, Classifier: CLASSIFICATION, Gkd: GKD,
}  # fmt: skip

# --- tasks and rewards ---------------------------------------------------------------------------


def sampling(name: str) -> Callable[[Any, Lab], Any]:
    def see(config, lab: Lab) -> Any:
        asked = []
        context = composed(
            rows=lambda: [], folder=lab.folder, sample=lambda prompts, how: asked.append(how) or []
        )
        Collect(config).run(context)
        return getattr(asked[0], name)

    return see


SAMPLES = {"prompt": "a prompt", "completions": ["aaaa", "aa", "a"], "answers": ["aa"]}


def ranked(config, lab: Lab, look: Callable[[Any], Any]) -> Any:
    """Run a ranking of three answers to one prompt, and look at what is written."""
    folder = lab.folder / "samples-of-collect"
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text(json.dumps(SAMPLES) + "\n")
    read: list[str] = []

    def stage_folder(name: str):
        read.append(name)
        return folder

    def load_stage(name: str):
        raise Seen(f"the reward model of {name}")

    context = composed(
        name="rank", folder=lab.folder, stage_folder=stage_folder, note=print,
        reward_function=Length,
        load_stage=load_stage,
    )  # fmt: skip
    try:
        Rank(config).run(context)
    except (WaitsForPeople, Seen) as ended:
        return look(SimpleNamespace(read=read, rows=[], ended=str(ended)))
    rows = [json.loads(line) for line in (lab.folder / "rows.jsonl").read_text().splitlines()]
    return look(SimpleNamespace(read=read, rows=rows, ended=""))


class Seen(Exception):
    """What a case looks for has been asked for."""


def looks(look: Callable[[Any], Any]) -> Callable[[Any, Lab], Any]:
    return lambda config, lab: ranked(config, lab, look)


JUDGE = Length.Config(method="length", target=2, unit="characters")
LONG = Length.Config(method="length", target=4, unit="characters")
RANK = {
    "samples": Case("drawn", looks(lambda found: found.read), ["drawn"], also={"judge": JUDGE}),
    "judge": Case(
        JUDGE, looks(lambda found: [row["chosen"] for row in found.rows][:1]), ["aa"], was=[]
    ),
    "reward_model": Case(
        "judge", looks(lambda found: found.ended), "the reward model of judge"
    ),
    "pairs": Case(
        "best_worst", looks(lambda found: len(found.rows)), 1, also={"judge": LONG}, was=3
    ),
    "raters": Case(3, looks(lambda found: "3 people" in found.ended), True, was=False),
}  # fmt: skip
COLLECT = {
    "num_return_sequences": Case(7, sampling("num_return_sequences"), 7, was=4),
    "max_new_tokens": Case(9, sampling("max_new_tokens"), 9, was=64),
    "temperature": Case(0.5, sampling("temperature"), 0.5, was=1.0),
    "top_p": Case(0.8, sampling("top_p"), 0.8, was=1.0),
    "top_k": Case(12, sampling("top_k"), 12, was=0),
}


def harnessed(name: str) -> Callable[[Any, Lab], Any]:
    """What the harness is asked; tests/plugins/tasks/test_lm_eval.py sees what it makes of it."""

    def see(config, lab: Lab) -> Any:
        asked = []

        def measured(harness, context):
            asked.append(harness)
            return SimpleNamespace(metrics={}, scores={}, rows=[], results={}, remarks=[])

        lab.patch.setattr(lm_eval, "harness_scores", measured)
        LmEval(config).run(composed(folder=lab.folder))
        return getattr(asked[0], name)

    return see


HARNESS = {
    "tasks": Case(["piqa", "mmlu"], harnessed("tasks"), ("piqa", "mmlu")),
    "num_fewshot": Case(3, harnessed("num_fewshot"), 3),
    "limit": Case(0.5, harnessed("limit"), 0.5),
    "apply_chat_template": Case(True, harnessed("apply_chat_template"), True, was=False),
    "fewshot_as_multiturn": Case(False, harnessed("fewshot_as_multiturn"), False, was=True),
    "system_instruction": Case("be brief", harnessed("system_instruction"), "be brief"),
    "include_path": Case("tasks", harnessed("include_path"), "tasks"),
}


def scored(look: Callable[[Any], Any]) -> Callable[[Any, Lab], Any]:
    """What a stage that scores two rows by a tiny model says of them."""

    def see(config, lab: Lab) -> Any:
        rows = [{"prompt": f"say {n}:", "completion": f" {n}"} for n in range(2)]
        (lab.folder / "exam.jsonl").write_text("\n".join(map(json.dumps, rows)))
        stage = {
            "name": "exam", "task": config.model_dump(mode="json"),
            "data": {"method": "jsonl", "path": str(lab.folder / "exam.jsonl")},
        }  # fmt: skip
        recipe = {
            "recipe": 1, "name": "exam", "output_dir": str(lab.folder / "runs"),
            "model": {"path": str(tiny_model_folder(lab.folder))}, "stages": [stage],
            "trackers": [],
        }  # fmt: skip
        path = lab.folder / "recipe.yaml"
        path.write_text(json.dumps(recipe))
        return look(run_recipe(load_recipe(path, Registry.discover())).stages["exam"])

    return see


def bases_asked(config, lab: Lab) -> list[bool]:
    """Whether each of the scores that are asked for is the base's."""
    asked = []
    context = composed(
        folder=lab.folder,
        row_scores=lambda base=False: asked.append(base) or RowScores({}),
    )
    Evaluate(config).run(context)
    return asked


EVALUATE = {
    "metrics": Case(
        ["perplexity", "f1"],
        scored(lambda result: list(result.after)),
        ["perplexity", "f1"],
        was=["loss"],
    ),
    "max_new_tokens": Case(
        5,
        scored(lambda result: result.generation["max_new_tokens"]),
        5,
        also={"metrics": ["exact_match"]},
        was=32,
    ),
    "base": Case(True, bases_asked, [False, True], was=[False]),
}
TASKS: dict[type, dict[str, Case]] = {
    Collect: COLLECT, Rank: RANK, LmEval: HARNESS, Evaluate: EVALUATE,
}  # fmt: skip


def scores(reward: type, *completions: str) -> Callable[[Any, Lab], list[float]]:
    return lambda config, lab: [
        float(reward(config).score("prompt", text, ("the cat",))) for text in completions
    ]


def read_as(text: str) -> Callable[[Any, Lab], str]:
    """Return what gives the text that math-verify reads as an answer's result."""

    def see(config, lab: Lab) -> str:
        from math_verify import parse

        rules = MathVerify(config)._strict
        return parse(text, extraction_config=rules, extraction_mode="first_match")[-1]

    return see


def maths_cases(reward: type, wrong: float, right: float, **also: Any) -> dict[str, Case]:
    """Return the cases of how results are read, of a reward that gives these of two words."""

    def given(gold: str, *texts: str) -> Callable[[Any, Lab], list[float]]:
        return lambda config, lab: [
            pytest.approx(reward(config).score("p", f"{text} .", (gold,))) for text in texts
        ]

    tagged = given("$7$", r"\boxed{8}<answer>7</answer>", "<answer>8</answer>")
    return {
        "answer_tag": Case("answer", tagged, [right, wrong], also=also, was=[wrong, wrong]),
        # Only the text that is read is compared where a box's content is not taken out of it.
        "boxed": Case("none", read_as(r"so $\boxed{12}$"), r"\boxed{12}", also=also, was="12"),
        "extraction_mode": Case(
            "first_match", given(r"1/2 of it $\foo$", r"\boxed{0.5}"), [wrong],
            also=also, was=[right],
        ),
    }  # fmt: skip


def curve(config, lab: Lab) -> list[Any]:
    """The scores of a right and of a wrong answer of two tokens."""
    made = Cosine(config)
    row = Encoded((1, 5, 6), (-100, 5, 6), "")
    batch = [SampledAnswer("p", text, ("$7$",), row) for text in (r"\boxed{7}", "no")]
    return [pytest.approx(value) for value in made.score_batch(batch)]


def over(config, lab: Lab) -> list[float]:
    """The scores of answers of 4, 7 and 9 tokens."""
    rows = [Encoded((1, *(5,) * n), (-100, *(5,) * n), "") for n in (4, 7, 9)]
    return list(SoftOverlong(config).score_batch([SampledAnswer("", "", (), row) for row in rows]))


WAVE: dict[str, Any] = {"max_len": 4}
FORMAT = scores(Format, "ab c", "xab", "ab\nc d e f")
ONLY = {"max_words": 100}


def weighed(config, lab: Lab) -> list[float]:
    """The weighted sum of the one reward of an answer that gets 3."""
    context = composed(tokenizer=tiny_tokenizer(), reward_function=lambda block: None)
    return Scorer(context, [config]).weighted(torch.tensor([[3.0]])).tolist()


def named_stage(config, lab: Lab) -> str:
    asked: list[str] = []
    RewardModel(config).start(composed(load_stage=asked.append))
    return asked[0]


WEIGHT = {"weight": Case(-0.5, weighed, [-1.5], was=[3.0])}
CODE = """
def rows(split):
    start = {"train": 0, "test": 5}[split]
    return [{"prompt": "p", "completion": f"{n}", "text": "t"} for n in (start, start + 1)]

def bad(split):
    return [{"prompt": "p"}, {"prompt": "p"}, {"prompt": "p", "completion": "c"}]

def reward(completions, **kwargs):
    return [VALUE for one in completions]

def other(completions, **kwargs):
    return [9.0 for one in completions]
"""


def own_code(method: type, look: Callable[[Any, Any], Any]) -> Callable[[Any, Lab], Any]:
    """Return what lets a method run the files that its settings name, and looks at it."""

    def see(config, lab: Lab) -> Any:
        for number, name in enumerate(("a.py", "b.py")):
            (lab.folder / name).write_text(CODE.replace("VALUE", f"{number}.5"))
        path = str(lab.folder / config.file)
        trust.grant([f"file:{path}"])
        try:
            return look(method(config.model_copy(update={"file": path})), config)
        except LlmftError as error:
            return error.faults[0].code
        finally:
            trust.revoke_all()

    return see


def first_score(made: Any, config: Any) -> float:
    return made.score("p", "c", ()) * config.weight


def completions(made: Any, config: Any) -> list[str]:
    return [row.completion for row in read_rows(made, config.split, config.limit).rows]


def origins(made: Any, config: Any) -> str:
    return next(iter(made.records("train")))[0].partition(": ")[0].rpartition("/")[2]


REWARD_FUNCTIONS: dict[type, dict[str, Case]] = {
    PythonReward: {
        "file": Case("b.py", own_code(PythonReward, first_score), 1.5, alone=True),
        "function": Case("other", own_code(PythonReward, first_score), 9.0, was=0.5),
        "weight": Case(4.0, own_code(PythonReward, first_score), 2.0, was=0.5),
    },
    RewardModel: WEIGHT | {"stage": Case("other", named_stage, "other")},
    FinalNumber: WEIGHT
    | {
        "any_number": Case(
            0.2,
            lambda c, lab: [FinalNumber(c).score("", text, ("7",)) for text in ("8", "7", "no")],
            [0.2, 1.0, 0.0],
            was=[0.0, 1.0, 0.0],
        ),
    },
    ExactMatch: WEIGHT
    | {
        # Without its article, the right answer is one word of the two that are given.
        "partial": Case(0.5, scores(ExactMatch, "black cat", "cat"), [0.5 * 2 / 3, 1.0]),
        "rambling": Case(0.25, scores(ExactMatch, "cat\nand more", "cat"), [0.75, 1.0]),
    },
    Format: {
        "weight": Case(-0.5, weighed, [-1.5], also=ONLY, was=[3.0]),
        "starts_with": Case("ab", FORMAT, [1.0, 0.5, 1.0], also=ONLY, was=[1.0, 1.0, 1.0]),
        "ends_with": Case("b", FORMAT, [0.5, 1.0, 0.5], also=ONLY),
        "contains": Case("c", FORMAT, [1.0, 0.5, 1.0], also=ONLY),
        "lacks": Case("x", FORMAT, [1.0, 0.5, 1.0], also=ONLY),
        "one_line": Case(True, FORMAT, [1.0, 1.0, 0.5], also=ONLY),
        "max_words": Case(2, FORMAT, [1.0, 1.0, 0.5], also={"lacks": "%"}),
    },
    Pattern: {
        "weight": Case(-0.5, weighed, [-1.5], also={"pattern": "a"}, was=[3.0]),
        "pattern": Case(
            "a.b$", scores(Pattern, "a\nb", "a b\nc", " a b", "ab"), [1.0, 1.0, 0.0, 0.0]
        ),
    },
    MathVerify: WEIGHT | maths_cases(MathVerify, 0.0, 1.0),
    Cosine: maths_cases(Cosine, -0.75, 0.75, **WAVE)
    | {
        "weight": Case(-0.5, weighed, [-1.5], also=WAVE, was=[3.0]),
        "max_len": Case(1, curve, [0.5, -0.5]),
        "max_value_correct": Case(3.0, curve, [1.75, -0.75], also=WAVE, was=[0.75, -0.75]),
        "min_value_correct": Case(0.0, curve, [0.5, -0.75], also=WAVE, was=[0.75, -0.75]),
        "min_value_wrong": Case(-2.0, curve, [0.75, -1.25], also=WAVE, was=[0.75, -0.75]),
        "max_value_wrong": Case(0.0, curve, [0.75, -0.5], also=WAVE, was=[0.75, -0.75]),
    },
    Repetition: WEIGHT
    | {
        # "a a", "a b", "b a", "a b": three of four runs of two are new.
        "ngram_size": Case(2, scores(Repetition, "a A b a b"), [-0.25], was=[0.0]),
        "max_penalty": Case(-0.5, scores(Repetition, "a a a a"), [-0.25], was=[-0.5]),
    },
    SoftOverlong: {
        "weight": Case(-0.5, weighed, [-1.5], also={"max_length": 9, "cache_length": 4}, was=[3.0]),
        "max_length": Case(8, over, [0.0, -0.5, -1.0], also={"cache_length": 2}),
        "cache_length": Case(4, over, [0.0, -0.75, -1.0], also={"max_length": 8}),
    },
    Length: {
        "weight": Case(-0.5, weighed, [-1.5], also={"target": 4}, was=[3.0]),
        "target": Case(8, scores(Length, "a b c d"), [0.5]),
        "unit": Case("characters", scores(Length, "a b c d"), [1 - 3 / 4], also={"target": 4}),
    },
}

# --- data sets -----------------------------------------------------------------------------------


def rows(dataset: type, *records: Any, look: Callable[[list], Any] = lambda rows: rows):
    """Return what reads records with the settings, from the split that they name, and looks."""

    def see(config, lab: Lab) -> Any:
        path = lab.folder / "rows.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        config = config.model_copy(update={"path": str(path)})
        try:
            found = read_rows(dataset(config), config.split, config.limit)
        except LlmftError as error:
            return error.faults[0].code
        return look(found.rows)

    return see


def first(look: Callable[[Any], Any]) -> Callable[[list], Any]:
    return lambda found: look(found[0])


def reading(name: str, dataset: type) -> Callable[[Any, Lab], Any]:
    """Return what looks where records are asked for."""

    def see(config, lab: Lab) -> Any:
        asked: dict[str, Any] = {}

        def read_records(path, split, **options):
            asked.update(options, path=path, split=split)
            return iter(())

        lab.patch.setattr(table_dataset, "read_records", read_records)
        list(dataset(config).records(config.split))
        lab.patch.undo()
        return asked[name]

    return see


def called(config, lab: Lab) -> str:
    return source_names(Mix.Config(method="mix", sources=[config]))[0]


def is_drawn_more(config, lab: Lab) -> bool:
    """Whether more rows of this source are drawn than of another, whose weight is 1."""
    other = config.model_copy(update={"weight": config.weight and 1.0})
    both = Mix(Mix.Config(method="mix", sources=[config, other], mixing="interleave"))
    return sum(source == 0 for source, _ in both.mixture([1000, 10], 17)) > 50


OF_SOURCES = {
    "name": Case("mine", called, "mine"),
    "weight": Case(9.0, is_drawn_more, True, was=False),
}


def table_cases(dataset: type, good: dict, bad: dict) -> dict[str, Case]:
    """Return the cases of what every table has. bad: a record that cannot be used."""
    three_bad = rows(dataset, good, *[bad] * 3, good, look=len)
    path = {"path": "theirs/rows"}
    skipping = {"on_bad_row": "skip", "max_bad_rows": 1.0}
    return {
        "path": Case("theirs/rows", reading("path", dataset), "theirs/rows", alone=True),
        "subset": Case("main", reading("subset", dataset), "main", also=path),
        "revision": Case("v2", reading("revision", dataset), "v2", also=path),
        "data_files": Case(
            {"train": "a.jsonl"}, reading("data_files", dataset), {"train": "a.jsonl"}, alone=True
        ),
        "split": Case("test", reading("split", dataset), "test", also=path, was="train"),
        "limit": Case(1, rows(dataset, *[good] * 3, look=len), 1, was=3),
        "on_bad_row": Case("skip", three_bad, 2, also={"max_bad_rows": 1.0}, was="E101"),
        "max_bad_rows": Case(0.5, three_bad, "E104", also=skipping),
        **OF_SOURCES,
    }


CLASSED = {"text": "p", "label": 1, "q": "why", "up": True}
COMPLETION = {"prompt": "p", "completion": "c", "q": "why", "a": "so", "right": ["x", "y"]}
TASK = {"instruction": "p", "input": "x", "output": "c", "q": "why", "y": "z", "a": "so"}
CHAT = {
    "messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}],
    "turns": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "d"}],
    "said": "Rhyme.", "functions": [{"name": "f"}], "tools": [{"name": "g"}],
}  # fmt: skip
TRIVIA = {"question": "why", "answer": {"value": "so", "aliases": ["so", "thus"]}}
REPEATED = {
    "prompt": "Say it:", "completion": "Say it: c", "label": True, "chosen": "Say it: a",
    "rejected": "Say it: b",
}  # fmt: skip
JUDGED = {
    "prompt": "p", "completion": "c", "label": True, "q": "why", "a": "so", "up": False,
    "right": ["x"],
}  # fmt: skip
PAIR = {
    "prompt": "p", "chosen": "c", "rejected": "r", "q": "why", "a": "so", "b": "no", "gap": 1.5,
    "sa": 3.0, "sb": 1.0, "right": ["x"], "all": ["u", "v"], "s": [1.0, 4.0], "k": [1, 2],
}  # fmt: skip


def made_from_stage(config, lab: Lab) -> list[str]:
    """What `records` of a stage reads: the split 'train' alone, as far as `limit`."""
    path = lab.folder / "rows.jsonl"
    bad, good = {"prompt": "p"}, {"prompt": "p", "chosen": "c", "rejected": "r"}
    path.write_text("".join(json.dumps(record) + "\n" for record in (good, bad, bad, good)))
    dataset = FromStage(config)
    dataset.upstream = {"stage": lab.folder}
    try:
        return [row.chosen for row in read_rows(dataset, config.split, config.limit).rows]
    except LlmftError as error:
        return [error.faults[0].code]


def reference(config, lab: Lab) -> str:
    try:
        list(FromStage(config).records("train"))
    except LlmftError as error:
        return error.faults[0].what
    return ""


def asks(dataset: type) -> Callable[[Any, Lab], bool]:
    return lambda config, lab: not isinstance(dataset(config).ask("why?"), str)


def prompt_of(row: Any) -> Any:
    return row.prompt


def tool(row: Any) -> str:
    return row.messages.tools[0]["function"]["name"]


def asked(row: Any) -> Any:
    """Return a prompt's text, or its turns as (role, content)."""
    if isinstance(row.prompt, str):
        return row.prompt
    return [(turn["role"], turn["content"]) for turn in row.prompt]


def opening(row: Any) -> str:
    return row.messages[0]["content"]


HUB = FromStage.Config(method="from_stage", stage="s")


def mixed(config, lab: Lab) -> list[tuple[int, int]]:
    return list(Mix(config).mixture([1, 2, 1][: len(config.sources)], 0))


def turns(row: Any) -> list[str]:
    return [turn["content"] for turn in row.messages]


ONE_BAD = {"on_bad_row": "skip"}
DATASETS: dict[type, dict[str, Case]] = {
    Jsonl: table_cases(Jsonl, COMPLETION, {"prompt": "p"})
    | {
        "chat": Case(True, rows(Jsonl, COMPLETION, look=first(asked)), [("user", "p")], was="p"),
        "system": Case(
            "Be brief.", rows(Jsonl, COMPLETION, look=first(asked)),
            [("system", "Be brief."), ("user", "p")], also={"chat": True}, was=[("user", "p")],
        ),
        "prompt_style": Case(
            "alpaca", rows(Jsonl, COMPLETION, look=first(lambda row: row.prompt[:5])), "Below",
            was="p",
        ),
        "repeated_prompt": Case(
            "strip", rows(Jsonl, REPEATED, look=first(lambda row: row.completion)), " c", was="E102"
        ),
        "special_tokens": Case(
            "parse", rows(Jsonl, COMPLETION, look=first(lambda row: row.special_tokens)), "parse",
            also={"columns": {"text": "q"}},
        ),
    },
    Chat: table_cases(Chat, CHAT, {"messages": []})
    | {
        "messages_column": Case(
            "turns", rows(Chat, CHAT, look=first(lambda row: row.messages[0]["content"])), "q"
        ),
        "learn": Case(
            "last", rows(Chat, CHAT, look=first(lambda row: type(row).__name__)), "CompletionRow"
        ),
        "turns": Case("rows", rows(Chat, CHAT, look=first(lambda row: row.turns)), "rows"),
        "system": Case("Be brief.", rows(Chat, CHAT, look=first(opening)), "Be brief.", was="p"),
        "drop_system": Case(
            True, rows(Chat, {"messages": [{"role": "system", "content": "s"}, *CHAT["messages"]]},
                       look=first(opening)), "p", was="s",
        ),
        "system_column": Case("said", rows(Chat, CHAT, look=first(opening)), "Rhyme.", was="p"),
        "tools_column": Case(
            "functions", rows(Chat, CHAT, look=first(tool)), "f", was="g"
        ),
    },
    Instruction: table_cases(Instruction, TASK, {"instruction": "p"})
    | {
        "with_input": Case(
            "{instruction}: {input}", rows(Instruction, TASK, look=first(turns)), ["p: x", "c"],
            was=["p\nx", "c"],
        ),
        "system": Case(
            "Be brief.", rows(Instruction, TASK, look=first(opening)), "Be brief.", was="p\nx"
        ),
        "system_with_input": Case("Read.", rows(Instruction, TASK, look=first(opening)), "Read."),
        "learn": Case(
            "every_token", rows(Instruction, TASK, look=first(lambda row: row.learn)),
            "every_token", was="all",
        ),
    },
    TriviaQA: table_cases(TriviaQA, TRIVIA, {"question": "q"})
    | {
        "subset": Case("rc", reading("subset", TriviaQA), "rc", was="rc.nocontext"),
        "prompt_template": Case(
            "Q {question}", rows(TriviaQA, TRIVIA, look=first(prompt_of)), "Q why"
        ),
        "completion_template": Case(
            "{answer}!", rows(TriviaQA, TRIVIA, look=first(lambda row: row.completion)), "so!"
        ),
        "chat": Case(
            True, rows(TriviaQA, TRIVIA, look=first(lambda row: isinstance(row.prompt, str))), False
        ),
    },
    Prompts: table_cases(Prompts, COMPLETION, {"completion": "c"})
    | {
        "chat": Case(True, asks(Prompts), True),
        "reward_columns": Case(
            ["q", "a"], rows(Prompts, COMPLETION, look=first(lambda row: row.columns)),
            {"q": "why", "a": "so"},
        ),
        "system": Case(
            "Be brief.",
            rows(Prompts, COMPLETION, look=first(lambda row: row.prompt[0]["content"])),
            "Be brief.", also={"chat": True}, was="p",
        ),
        "remove_response": Case(
            True,
            rows(Prompts, {"prompt": CHAT["messages"]}, look=first(lambda row: len(row.prompt))),
            len(CHAT["messages"]) - 1, was=len(CHAT["messages"]),
        ),
    },
    Preference: table_cases(Preference, PAIR, {"prompt": "p"})
    | {
        "strip_answers": Case(
            False,
            rows(Preference, {"prompt": "p", "chosen": " c ", "rejected": " r"},
                 look=first(lambda row: (row.chosen, row.rejected))),
            (" c ", " r"), also={"chat": True}, was=("c", "r"),
        ),
        "common_start": Case(
            True, rows(Preference, {"chosen": "w? a", "rejected": "w? b"}, look=first(prompt_of)),
            "w?", was="E102",
        ),
        "repeated_prompt": Case(
            "strip", rows(Preference, REPEATED, look=first(lambda row: (row.chosen, row.rejected))),
            (" a", " b"), was="E102",
        ),
        "chat": Case(True, asks(Preference), True),
        "max_bad_rows": Case(
            0.7, rows(Preference, PAIR, *[{"prompt": "p"}] * 3, PAIR, look=len), 2,
            also={"on_bad_row": "skip"}, was="E104",
        ),
        "on_bad_row": Case(
            "skip", rows(Preference, PAIR, {"prompt": "p"}, look=len), 1,
            also={"max_bad_rows": 1.0}, was="E101",
        ),
    },
    Unpaired: table_cases(Unpaired, JUDGED, {"prompt": "p"})
    | {
        "strip_answers": Case(
            False,
            rows(Unpaired, {"prompt": "p", "completion": " c ", "label": 1},
                 look=first(lambda row: row.completion)),
            " c ", also={"chat": True}, was="c",
        ),
        "repeated_prompt": Case(
            "strip", rows(Unpaired, REPEATED, look=first(lambda row: row.completion)), " c",
            was="E102",
        ),
        "chat": Case(True, asks(Unpaired), True),
        "max_bad_rows": Case(
            0.7, rows(Unpaired, JUDGED, *[{"prompt": "p"}] * 3, JUDGED, look=len), 2,
            also={"on_bad_row": "skip"}, was="E104",
        ),
    },
    ClassificationData: table_cases(ClassificationData, CLASSED, {"text": "p"})
    | {"chat": Case(True, asks(ClassificationData), True)},
    FromStage: {
        "name": Case("mine", called, "mine", also={"stage": "r"}),
        "weight": Case(9.0, is_drawn_more, True, was=False, also={"stage": "r"}),
        "stage": Case("rank", reference, "the stage 'rank' has not made them yet"),
        "split": Case("test", made_from_stage, ["E109"], also={"stage": "r"}),
        "limit": Case(1, made_from_stage, ["c"], also={"stage": "r"}),
        "on_bad_row": Case("skip", made_from_stage, ["c", "c"], also={"stage": "r"}, was=["E101"]),
        "max_bad_rows": Case(
            0.4, made_from_stage, ["E104"], also={"stage": "r", **ONE_BAD}, was=["c", "c"]
        ),
    },
    Python: {
        **OF_SOURCES,
        "file": Case("b.py", own_code(Python, origins), "b.py", alone=True),
        "function": Case("nope", own_code(Python, completions), "E121", was=["0", "1"]),
        "rows": Case(
            "text", own_code(Python, lambda made, c: made.row_kind()), "text", was="completion"
        ),
        "chat": Case(True, own_code(Python, lambda made, c: type(made.ask("q"))), tuple, was=str),
        "split": Case("test", own_code(Python, completions), ["5", "6"]),
        "limit": Case(1, own_code(Python, completions), ["0"]),
        "on_bad_row": Case(
            "skip", own_code(Python, completions), ["c"], also={"function": "bad"}, was="E101"
        ),
        "max_bad_rows": Case(
            0.5, own_code(Python, completions), "E104", also={"function": "bad", **ONE_BAD},
            was=["c"],
        ),
    },
    Mix: {
        "sources": Case([HUB, HUB, HUB], mixed, [(0, 0), (1, 0), (1, 1), (2, 0)], alone=True),
        "mixing": Case("interleave", mixed, [(0, 0), (1, 0)], was=[(0, 0), (1, 0), (1, 1)]),
        "stopping_strategy": Case(
            "all_exhausted", mixed, [(0, 0), (1, 0), (0, 0), (1, 1)], also={"mixing": "interleave"},
            was=[(0, 0), (1, 0)],
        ),
        # What stands in each source is refused here, where it would do nothing.
        **{
            name: Case(value, lambda config, lab: [key for key, *_ in Mix(config).check()],
                       [(name,)], was=[])
            for name, value in {
                "split": "test", "limit": 5, "on_bad_row": "skip", "max_bad_rows": 0.5,
                "num_samples": 5, "replace": [{"column": "a", "text": "b", "by": "c"}],
                "name": "whole", "weight": 2.0,
            }.items()
        },
    },
}  # fmt: skip


def columns(
    dataset: type, record: dict, look: Callable[[Any], Any], **more: Any
) -> Callable[[Any, Lab], Any]:
    """Return what reads a record by a block of columns. more: other settings."""

    def see(block, lab: Lab) -> Any:
        config = {"method": dataset.method, "path": str(lab.folder / "rows.jsonl"), **more}
        settings = dataset.Config.model_validate({**config, "columns": block.model_dump()})
        return rows(dataset, record, look=first(look))(settings, lab)

    return see


def preference(look: Callable[[Any], Any]) -> Callable[[Any, Lab], Any]:
    return columns(Preference, PAIR, look)


def three(row: Any) -> tuple:
    return row.chosen, row.rejected, row.margin


def in_chat(look: Callable[[Any], Any]) -> Callable[[Any, Lab], Any]:
    return columns(Jsonl, {**COMPLETION, "past": [["x", "y"]]}, look, chat=True)


def completion(look: Callable[[Any], Any]) -> Callable[[Any, Lab], Any]:
    return columns(Jsonl, COMPLETION, look)


ALL = {"candidates": "all"}


def other_model(name: str) -> Callable[[Any, Lab], Any]:
    """Return what looks what of another model is loaded."""

    def see(config, lab: Lab) -> Any:
        seen: dict[str, Any] = {}
        lab.patch.setattr(
            stage_models, "_placed",
            lambda base, options, where, varlen: seen.update(base.asked.model_dump()),
        )  # fmt: skip
        models: Any = SimpleNamespace(
            model=None, log=SimpleNamespace(progress=lambda *_: None),
            _other_base=lambda asked: BaseModelOf(asked.source()),
            _ends_only_there=lambda loaded: "",
        )  # fmt: skip
        stage_models.StageModels._loaded_other(models, config)
        return seen[name]

    return see


BLOCKS: dict[type[BaseModel], dict[str, Case]] = {
    OtherModel: {
        "path": Case("org/large", other_model("path"), "org/large"),
        "revision": Case("v2", other_model("revision"), "v2", also={"path": "org/large"}),
        "dtype": Case("float16", other_model("dtype"), "float16", also={"path": "org/large"}),
    },
    JsonlColumns: {
        "prompt": Case("Q {q}", completion(prompt_of), "Q why", was="p"),
        "input": Case("q", completion(prompt_of), "p\nwhy", was="p"),
        "system": Case(
            "q", in_chat(asked), [("system", "why"), ("user", "p")], was=[("user", "p")]
        ),
        "history": Case(
            "past",
            in_chat(asked),
            [("user", "x"), ("assistant", "y"), ("user", "p")],
            was=[("user", "p")],
        ),
        "completion": Case("a", completion(lambda row: row.completion), "so", was="c"),
        "text": Case("{q} {a}", completion(lambda row: getattr(row, "text", None)), "why so"),
        "answers": Case("right", completion(lambda row: row.answers), ("x", "y"), was=("c",)),
    },
    InstructionColumns: {
        "instruction": Case("Q {q}", columns(Instruction, TASK, turns), ["Q why\nx", "c"]),
        "input": Case("y", columns(Instruction, TASK, turns), ["p\nz", "c"], was=["p\nx", "c"]),
        "output": Case("a", columns(Instruction, TASK, turns), ["p\nx", "so"]),
    },
    PromptsColumns: {
        "prompt": Case("Q {q}", columns(Prompts, COMPLETION, prompt_of), "Q why", was="p"),
        "answers": Case(
            "right", columns(Prompts, COMPLETION, lambda row: row.answers), ("x", "y"), was=()
        ),
    },
    UnpairedColumns: {
        "prompt": Case("Q {q}", columns(Unpaired, JUDGED, prompt_of), "Q why", was="p"),
        "completion": Case(
            "a", columns(Unpaired, JUDGED, lambda row: row.completion), "so", was="c"
        ),
        "label": Case("up", columns(Unpaired, JUDGED, lambda row: row.label), False, was=True),
        "answers": Case(
            "right", columns(Unpaired, JUDGED, lambda row: row.answers), ("x",), was=()
        ),
    },
    ClassificationColumns: {
        "text": Case("q", columns(ClassificationData, CLASSED, prompt_of), "why", was="p"),
        "text_pair": Case(
            "q", columns(ClassificationData, CLASSED, lambda row: row.text_pair), "why"
        ),
        "label": Case(
            "up", columns(ClassificationData, CLASSED, lambda row: row.label), "true", was=1
        ),
    },
    PreferenceColumns: {
        "prompt": Case("Q {q}", preference(prompt_of), "Q why", was="p"),
        "chosen": Case("a", preference(three), ("so", "r", None), was=("c", "r", None)),
        "rejected": Case("b", preference(three), ("c", "no", None)),
        "margin": Case("gap", preference(three), ("c", "r", 1.5)),
        "chosen_score": Case(
            "sa", preference(three), ("c", "r", 2.0), also={"rejected_score": "sb"}, alone=True
        ),
        "rejected_score": Case(
            "sb", preference(three), ("c", "r", 2.0), also={"chosen_score": "sa"}, alone=True
        ),
        "answers": Case("right", preference(lambda row: row.answers), ("x",), was=()),
        "candidates": Case(
            "all", preference(three), ("v", "u", 3.0), also={"scores": "s"}, alone=True
        ),
        "scores": Case("s", preference(three), ("v", "u", 3.0), also=ALL, alone=True),
        "ranks": Case("k", preference(three), ("u", "v", None), also=ALL, alone=True),
    },
}

# --- trackers ------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(config, lab: Lab) -> int:
    """How many of a hundred steps, 1/128 s apart, are drawn as a moving line on a terminal."""
    clock = iter(range(1000, 10_000))
    out = Terminal()
    for name, value in {"TERM": "xterm", "COLUMNS": "100"}.items():
        lab.patch.setenv(name, value)
    lab.patch.delenv("CI", raising=False)
    lab.patch.setattr(sys, "stdout", out)
    count = 0

    def draw(line, head, share, metrics, left):
        nonlocal count
        count += 1

    time = SimpleNamespace(monotonic=lambda: next(clock) / 128)
    lab.patch.setattr("llmft_trackers.console.time", time)
    lab.patch.setattr("llmft_trackers.console.live.LiveLine.draw", draw)
    tracker = Console(config)
    for done in range(1, 101):
        tracker.progress(Progress("sft", "train", done, 1000, {}, False))
    lab.patch.undo()
    return count


def to_wandb(name: str) -> Callable[[Any, Lab], Any]:
    """Return what looks what a run's start tells the process that talks to wandb."""

    def see(config, lab: Lab) -> Any:
        told: list[dict] = []
        keys: list[bool] = []

        class Process:
            def __init__(self, with_key: bool) -> None:
                keys.append(with_key)

            def tell(self, message) -> None:
                told.append(dict(message))

        for variable in ("WANDB_MODE", "WANDB_PROJECT"):
            lab.patch.delenv(variable, raising=False)
        lab.patch.setattr(wandb_module, "WandbProcess", Process)
        folder = lab.folder / "run"
        folder.mkdir(exist_ok=True)
        Wandb(config).run_started(RunInfo("quick", folder, {}, ("sft",)))
        return {**told[0], "with_key": keys[0]}[name]

    return see


def told_first(cls: type, module: Any, name: str) -> Callable[[Any, Lab], Any]:
    """Return what looks what a run's start tells the process that talks to a library."""

    def see(config, lab: Lab) -> Any:
        told: list[dict] = []

        class Process:
            def __init__(self, *given) -> None:
                pass

            def tell(self, message) -> None:
                told.append(dict(message))

        for variable in ("MLFLOW_EXPERIMENT_NAME", "SWANLAB_MODE", "SWANLAB_PROJ_NAME"):
            lab.patch.delenv(variable, raising=False)
        lab.patch.setattr(module, "TrackerProcess", Process)
        folder = lab.folder / "run"
        folder.mkdir(exist_ok=True)
        cls(config).run_started(RunInfo("quick", folder, {}, ("sft",)))
        return told[0][name]

    return see


def to_mlflow(name: str) -> Callable[[Any, Lab], Any]:
    return told_first(MLflow, mlflow_module, name)


def to_swanlab(name: str) -> Callable[[Any, Lab], Any]:
    return told_first(SwanLab, swanlab_module, name)


def to_trackio(name: str) -> Callable[[Any, Lab], Any]:
    return told_first(Trackio, trackio_module, name)


def tables_of_wandb(config, lab: Lab) -> list[str]:
    """Which tables a stage's end tells the process that talks to wandb."""
    told: list[dict] = []
    tracker = Wandb(config)
    lab.patch.setattr(tracker, "_tell", told.append)
    sample = {"when": "after", "prompt": "p", "answer": "a", "right": ["a"]}
    tracker.stage_finished("sft", {"samples": [sample]})
    return [message["table"] for message in told if "table" in message]


def is_soon_written(config, lab: Lab) -> bool:
    """Whether a number is in the file while the writer is still open."""
    folder = lab.folder / str(config.flush_secs)
    tracker = TensorBoard(config)
    tracker.run_started(RunInfo("r", folder, {}, ("sft",)))
    for step in (1, 2):  # the writer looks at the clock when it gets something
        progress = Progress("sft", "train", step, 9, {"loss": 0.5}, logged=True)
        tracker.progress(progress)
        time.sleep(0.2)
    (file,) = (folder / "tensorboard" / "sft").iterdir()
    written = b"train/loss" in file.read_bytes()
    tracker.run_finished({})
    return written


@pytest.fixture(autouse=True)
def installed_trackers(monkeypatch):
    """Let the trackers' packages count as installed: their settings are looked at here."""
    monkeypatch.setattr("llmft_trackers.reporter.find_spec", lambda name: True)


TRACKERS: dict[type, dict[str, Case]] = {
    Console: {
        "live": Case(False, drawn, 0),
        "refresh_per_second": Case(8.0, drawn, 7, was=4),
    },
    JsonlTracker: {},
    MLflow: {
        "experiment_name": Case("mine", to_mlflow("experiment"), "mine", was="llmft"),
        "run_name": Case("the third", to_mlflow("name"), "the third", was="quick run"),
    },
    SwanLab: {
        "project": Case("mine", to_swanlab("project"), "mine", was="llmft"),
        "workspace": Case("us", to_swanlab("workspace"), "us"),
        "experiment_name": Case("the third", to_swanlab("name"), "the third", was="quick run"),
        "group": Case("g", to_swanlab("group"), "g"),
        "tags": Case(["a", "b"], to_swanlab("tags"), ["a", "b"], was=[]),
        "mode": Case("offline", to_swanlab("offline"), True, was=False),
    },
    Trackio: {
        "project": Case("mine", to_trackio("project"), "mine", was="llmft"),
        "name": Case("the third", to_trackio("name"), "the third run", was="quick run"),
        "group": Case("g", to_trackio("group"), "g"),
    },
    TensorBoard: {"flush_secs": Case(0.05, is_soon_written, True, was=False)},
    Wandb: {
        "project": Case("mine", to_wandb("project"), "mine", was="llmft"),
        "entity": Case("us", to_wandb("entity"), "us"),
        "name": Case("the third", to_wandb("name"), "the third", was="quick run"),
        "group": Case("g", to_wandb("group"), "g"),
        "tags": Case(["a", "b"], to_wandb("tags"), ["a", "b"], was=[]),
        "mode": Case("offline", to_wandb("with_key"), False, was=True),
        "log_completions": Case(True, tables_of_wandb, ["sft/completions"], was=[]),
    },
}

# --- optimisers ----------------------------------------------------------------------------------


def momentum_of(cls: type) -> Callable[[Any, Lab], float]:
    """Return what looks at how far a second step goes, beside the first, along one gradient."""

    def see(config: Any, lab: Lab) -> float:
        weight = torch.nn.Parameter(torch.zeros(2, 2))
        made = cls(config).make([{"params": [weight]}], TrainSettings(learning_rate=1.0))
        steps = []
        for gradient in (torch.eye(2), torch.eye(2).flip(0)):
            before = weight.detach().clone()
            weight.grad = gradient.clone()
            made.step()
            steps.append(before - weight.detach())
        return float(steps[1][0, 0] / steps[0][0, 0])  # what is left of the first gradient

    return see


def handed_on(cls: type, name: str) -> Callable[[Any, Lab], float]:
    """Return what looks at a setting in the groups of the library's own optimiser."""

    def see(config: Any, lab: Lab) -> float:
        weight = torch.nn.Parameter(torch.zeros(2, 2))
        made = cls(config).make([{"params": [weight]}], TrainSettings())
        return float(made.param_groups[0][name])

    return see


def averaging(cls: type) -> dict[str, Case]:
    """The cases of a schedule-free optimiser."""
    return {
        "r": Case(2.0, handed_on(cls, "r"), 2.0, was=0.0),
        "weight_lr_power": Case(1.0, handed_on(cls, "weight_lr_power"), 1.0, was=2.0),
    }


OPTIMIZERS: dict[type, dict[str, Case]] = {
    of_torch.AdamwTorch: {},
    of_torch.AdamwTorchFused: {},
    of_torch.Sgd: {"momentum": Case(0.5, momentum_of(of_torch.Sgd), 0.5, was=0.0)},
    of_torch.Adagrad: {},
    of_torch.Rmsprop: {},
    of_torch.Muon: {"momentum": Case(0.0, momentum_of(of_torch.Muon), 0.0)},
    Adafactor: {},
    **{cls: {} for cls in of_bitsandbytes.llmft_optimizers()},
    **{cls: {} for cls in of_torchao.llmft_optimizers()},
    ScheduleFreeAdamw: averaging(ScheduleFreeAdamw),
    ScheduleFreeSgd: {
        **averaging(ScheduleFreeSgd),
        "momentum": Case(0.5, handed_on(ScheduleFreeSgd, "momentum"), 0.5, was=0.9),
    },
}

# --- learning-rate schedules ---------------------------------------------------------------------


def factor_at(step: int, cls: type, steps: int = 4, warmup: int = 0) -> Callable[[Any, Lab], float]:
    """Return what looks at the factor in a step of so many, of a peak of 1."""
    span = TrainingSpan(steps, warmup, 1.0)
    return lambda config, lab: float(cls(config).factor(step, span))


def plateau_after(*scores: float, cls: type = ReduceLrOnPlateau) -> Callable[[Any, Lab], float]:
    """Return what looks at the rate after these scores, of a peak of 1."""

    def see(config: Any, lab: Lab) -> float:
        made, span = cls(config), TrainingSpan(4, 0, 1.0)
        made.rates(0, [1.0], span)
        for score in scores:
            made.scored(score, span)
        return float(made.rates(1, [1.0], span)[0])

    return see


def greedy_after(*scores: float) -> Callable[[Any, Lab], float]:
    """Return what looks at greedy's rate: the first score is always an improvement."""
    return plateau_after(*scores, cls=Greedy)


AT_ONCE = {"patience": 0}
RISES_TO = {"patience": 0, "max_lr": 8.0, "factor": 0.5}
HALF_WAY, AT_END = {"num_decay_steps": 4}, {"min_lr_rate": 0.25}
Lowest, Wsd = curves.CosineWithMinLr, curves.WarmupStableDecay
LOWEST = {
    "num_cycles": Case(1.0, factor_at(4, Lowest), 1.0, also=AT_END, was=0.25),
    "min_lr": Case(0.25, factor_at(4, Lowest), 0.25, alone=True),
    "min_lr_rate": Case(0.25, factor_at(4, Lowest), 0.25, alone=True),
}
SCHEDULES: dict[type, dict[str, Case]] = {
    curves.Constant: {},
    curves.ConstantWithWarmup: {},
    curves.Linear: {},
    curves.Cosine: {"num_cycles": Case(1.0, factor_at(2, curves.Cosine), 0.0, was=0.5)},
    curves.CosineWithRestarts: {
        "num_cycles": Case(2.0, factor_at(2, curves.CosineWithRestarts), 1.0, was=0.5)
    },
    curves.CosineWithMinLr: LOWEST,
    curves.CosineWarmupWithMinLr: {
        # transformers counts this one's steps from 1
        "num_cycles": Case(1.0, factor_at(3, curves.CosineWarmupWithMinLr), 1.0, also=AT_END,
                           was=0.25),
        "min_lr": Case(0.25, factor_at(3, curves.CosineWarmupWithMinLr), 0.25, alone=True),
        "min_lr_rate": Case(0.25, factor_at(3, curves.CosineWarmupWithMinLr), 0.25, alone=True),
        "warmup_lr_rate": Case(0.5, factor_at(0, curves.CosineWarmupWithMinLr, warmup=3), 0.5,
                               also=AT_END, was=1 / 3),
    },
    curves.Polynomial: {
        "lr_end": Case(0.25, factor_at(4, curves.Polynomial), 0.25, was=1e-7),
        "power": Case(2.0, factor_at(2, curves.Polynomial), 0.25, was=0.5),
    },
    curves.InverseSqrt: {
        "timescale": Case(4, factor_at(4, curves.InverseSqrt), math.sqrt(0.5),
                          was=math.sqrt(10_000 / 10_004))
    },
    curves.WarmupStableDecay: {
        "num_decay_steps": Case(2, factor_at(3, Wsd), 0.5, alone=True),
        "warmup_type": Case("cosine", factor_at(1, Wsd, steps=8, warmup=4),
                            (1 - math.cos(math.pi / 4)) / 2, also=HALF_WAY, was=0.25),
        "decay_type": Case("linear", factor_at(1, Wsd), 0.75, also=HALF_WAY,
                           was=(1 + math.cos(math.pi / 4)) / 2),
        "min_lr_ratio": Case(0.5, factor_at(4, Wsd), 0.5, also=HALF_WAY, was=0.0),
        "num_cycles": Case(1.0, factor_at(2, Wsd), 0.0, also=HALF_WAY, was=0.5),
    },
    ReduceLrOnPlateau: {
        "factor": Case(0.5, plateau_after(1, 1), 0.5, also=AT_ONCE, was=0.1),
        "patience": Case(0, plateau_after(1, 1), 0.1, was=1.0),
        "threshold": Case(0.5, plateau_after(1, 0.75), 0.1, also=AT_ONCE, was=1.0),
        "threshold_mode": Case("abs", plateau_after(4, 3), 1.0,
                               also={**AT_ONCE, "threshold": 0.3}, was=0.1),
        "cooldown": Case(2, plateau_after(1, 1, 1), 0.1, also=AT_ONCE, was=0.01),
        "min_lr": Case(0.25, plateau_after(1, 1), 0.25, also=AT_ONCE, was=0.1),
    },
    Greedy: {
        "factor": Case(0.5, greedy_after(2, 2), 0.5, also=AT_ONCE, was=0.95),
        "patience": Case(1, greedy_after(2, 2, 2), 0.95, was=1.0),
        "threshold": Case(0.5, greedy_after(2, 1.75), 0.95, also=AT_ONCE, was=1.0),
        "threshold_mode": Case("rel", greedy_after(4, 3), 1.0,
                               also={**RISES_TO, "threshold": 0.3}, was=4.0),
        "cooldown": Case(1, greedy_after(2, 2, 2), 1.0, also=RISES_TO, was=0.5),
        "warmup": Case(1, greedy_after(4, 3, 2), 4.0, also=RISES_TO, was=8.0),
        "min_lr": Case(0.75, greedy_after(2, 2, 2), 0.75, also={"patience": 0, "factor": 0.5},
                       was=0.25),
        "max_lr": Case(1.5, greedy_after(2), 1.5, also={"patience": 0, "factor": 0.5}, was=1.0),
        "eps": Case(0.9, greedy_after(2, 2), 1.0, also={"patience": 0, "factor": 0.5}, was=0.5),
        # The means of 4, 2 and 2.5 fall all the time.
        "smooth": Case(True, greedy_after(4, 2, 2.5), 1.0, also={"patience": 0, "factor": 0.5},
                       was=0.5),
        "window_size": Case(1, greedy_after(4, 2, 2.5), 0.5,
                            also={"patience": 0, "factor": 0.5, "smooth": True}, was=1.0),
        "reset_start": Case(1, greedy_after(2, 2, 2), 1.0,
                            also={"patience": 0, "factor": 0.5, "min_lr": 0.25}, was=0.25),
    },
}  # fmt: skip

# --- callbacks -----------------------------------------------------------------------------------


def averaged(*path: float) -> Callable[[Any, Lab], list[float]]:
    """Return what looks at the averages of a weight that starts at 8 and takes these values."""

    def see(config: Any, lab: Lab) -> list[float]:
        weight = torch.nn.Parameter(torch.tensor([8.0]))
        ema, found = Ema(config), []
        ema.on_train_begin(TrainingStep(0, len(path), {"w": weight}))
        for step, value in enumerate(path, 1):
            weight.data.fill_(value)
            ema.on_step_end(TrainingStep(step, len(path), {"w": weight}))
            found.append(float(ema.weights("result")["w"]))
        return found

    return see


def ended(*losses: float) -> Callable[[Any, Lab], tuple[int, str]]:
    """Return what looks at which step these losses end, and how; (0, ""): none."""

    def see(config: Any, lab: Lab) -> tuple[int, str]:
        watchdog = LossWatchdog(config)
        for step, loss in enumerate(losses, 1):
            try:
                watchdog.on_step_end(TrainingStep(step, 9, {}, {"loss": loss}))
            except LlmftError:
                return step, "fail"
            if not watchdog.should_continue():
                return step, "end"
        return 0, ""

    return see


HALF, RISES = {"decay": 0.5}, {"use_ema_warmup": True}
NEVER = {"plateau_patience": 9}
CALLBACKS: dict[type, dict[str, Case]] = {
    Ema: {
        "decay": Case(0.5, averaged(0.0, 3.0), [0.0, 2.0]),
        "bias_correction": Case(False, averaged(0.0, 4.0), [4.0, 4.0], also=HALF,
                                was=[0.0, 8 / 3]),
        # decays of 0, and then 1 - 2^(-2/3)
        "use_ema_warmup": Case(True, averaged(0.0, 4.0), [0.0, 4 * 2 ** (-2 / 3)]),
        "inv_gamma": Case(3.0, averaged(0.0, 4.0), [0.0, 4 * (4 / 3) ** (-2 / 3)], also=RISES),
        "power": Case(1.0, averaged(0.0, 4.0), [0.0, 2.0], also=RISES),
        "update_after_step": Case(1, averaged(5.0, 6.0, 9.0), [5.0, 6.0, 8.0], also=HALF),
    },
    LossWatchdog: {
        "threshold": Case(5.0, ended(6, 6, 6), (3, "fail"), also=NEVER, was=(0, "")),
        "spike_factor": Case(2.0, ended(1, 1, 3, 3, 3), (5, "fail"), also={**NEVER, "window": 2},
                             was=(0, "")),
        "patience": Case(1, ended(6, 6, 6), (1, "fail"), also={"threshold": 5.0},
                         was=(3, "fail")),
        "on_spike": Case("end", ended(6, 6, 6), (3, "end"), also={"threshold": 5.0},
                         was=(3, "fail")),
        "plateau_patience": Case(2, ended(1, 1, 1), (3, "end"),
                                 also={"window": 1, "threshold": 9.0}, was=(0, "")),
        "min_delta": Case(0.5, ended(4, 3.9, 3.8), (3, "end"),
                          also={"window": 1, "plateau_patience": 2}, was=(0, "")),
        "on_plateau": Case("fail", ended(1, 1, 1), (3, "fail"),
                           also={"window": 1, "plateau_patience": 2}, was=(3, "end")),
        "window": Case(2, ended(1, 1, 1, 1), (4, "end"), also={"plateau_patience": 2},
                       was=(0, "")),
    },
}  # fmt: skip

# --- metrics -------------------------------------------------------------------------------------


def named_by(cls: type) -> Case:
    """What a metric's score is called."""
    return Case("mine", lambda config, lab: score_names(cls(config)), ("mine",), was=(cls.method,))


def value_by(cls: type) -> Callable[[Any, Lab], Any]:
    """What a metric gives two answers, whose second lines are no part of the right ones."""
    rows = [PromptRow("?", (right,)) for right in ("a b", "a b a")]
    texts = ["a b\nb", "a b a\nand"]
    answers = [ScoredAnswer("?", *pair) for pair in
               zip(texts, [row.answers for row in rows], rows, strict=True)]  # fmt: skip

    def value(config: Any, lab: Lab) -> Any:
        made = cls(config)
        if made.is_of_corpus():
            return made.score_corpus(answers)
        return [made.score(answer) for answer in answers]

    return value


def beside(cls: type, text: str, right: str) -> Callable[[Any, Lab], float]:
    """Return what a metric of all answers gives one answer."""
    answer = ScoredAnswer("?", text, (right,), PromptRow("?", (right,)))
    return lambda config, lab: cls(config).score_corpus([answer])


def unigrams(text: str, right: str) -> Callable[[Any, Lab], float]:
    """Return what looks at ROUGE-1 of one answer."""
    answer = ScoredAnswer("?", text, (right,), PromptRow("?", (right,)))
    return lambda config, lab: Rouge(config).score(answer)["1"]


METRICS: dict[type, dict[str, Case]] = {
    ExactMatchMetric: {
        "name": named_by(ExactMatchMetric),
        "first_line": Case(True, value_by(ExactMatchMetric), [1.0, 1.0], was=[0.0, 0.0]),
    },
    F1: {
        "name": named_by(F1),
        # normalised, 'a' is an article: b b against b, and b and against b
        "first_line": Case(True, value_by(F1), [1.0, 1.0], was=[2 / 3, 2 / 3]),
    },
    FinalNumberMetric: {"name": named_by(FinalNumberMetric)},
    Bleu: {
        "name": named_by(Bleu),
        "first_line": Case(True, beside(Bleu, "a b c d\nx", "a b c d"), 100.0),
        "lowercase": Case(True, beside(Bleu, "A B C D", "a b c d"), 100.0, was=0.0),
        # of 4 words 3 are right, of 3 pairs 2; and the answer is shorter by one of 5
        "tokenize": Case(
            "none",
            beside(Bleu, "a b c d.", "a b c d ."),
            100 * math.sqrt(1 / 2) * math.exp(1 - 5 / 4),
            also={"max_ngram_order": 2},
            was=100.0,
        ),
        "smooth_method": Case("none", beside(Bleu, "a b x d", "a b c d"), 0.0),
        "max_ngram_order": Case(1, beside(Bleu, "a b x d", "a b c d"), 75.0),
    },
    Chrf: {
        "name": named_by(Chrf),
        "first_line": Case(True, beside(Chrf, "abc\nx", "abc"), 100.0),
        "lowercase": Case(True, beside(Chrf, "ABC", "abc"), 100.0, was=0.0),
        # precision 1, recall 2/3
        "char_order": Case(1, beside(Chrf, "ab", "abc"), 500 * (2 / 3) / (4 + 2 / 3)),
        "beta": Case(
            1,
            beside(Chrf, "ab", "abc"),
            80.0,
            also={"char_order": 1},
            was=500 * (2 / 3) / (4 + 2 / 3),
        ),
        # of three characters two are right, of two words one
        "word_order": Case(
            1,
            beside(Chrf, "ab c", "ab d"),
            100 * (2 / 3 + 1 / 2) / 2,
            also={"char_order": 1},
            was=200 / 3,
        ),
    },
    Rouge: {
        "name": Case("r", lambda config, lab: score_names(Rouge(config))[0], "r_1", was="rouge_1"),
        "first_line": Case(True, unigrams("the cat\nsat", "the cat"), 1.0, was=0.8),
        "rouge_types": Case(
            ["rougeL"],
            lambda config, lab: Rouge(config).values(),
            ("L",),
            was=("1", "2", "L", "Lsum"),
        ),
        "use_stemmer": Case(True, unigrams("cats running", "cat run"), 1.0, was=0.0),
    },
    Distinct: {
        "name": named_by(Distinct),
        # a b b | a b a and: words a b and of 7, pairs ab bb ba a-and of 5
        "n": Case(1, value_by(Distinct), 3 / 7, was=4 / 5),
    },
}

# --- the test ------------------------------------------------------------------------------------

CASES: dict[str, dict[type, dict[str, Case]]] = {
    "adapter": ADAPTERS, "alignment": ALIGNMENTS, "task": TASKS, "reward": REWARD_FUNCTIONS,
    "dataset": DATASETS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES, "callback": CALLBACKS,
    "metric": METRICS, "tracker": TRACKERS,
}  # fmt: skip
NEEDED: dict[type, dict[str, Any]] = {
    Jsonl: {"path": "rows.jsonl"}, Chat: {"path": "rows.jsonl"}, Prompts: {"path": "rows.jsonl"},
    Wsd: {"num_decay_steps": 2},
    Unpaired: {"path": "rows.jsonl"}, Preference: {"path": "rows.jsonl"},
    ClassificationData: {"path": "rows.jsonl"},
    Instruction: {"path": "rows.jsonl"},
    Ppo: {"reward_model": "judge"},
    Grpo: {"rewards": [RULE]}, Rloo: {"rewards": [RULE]}, RewardModel: {"stage": "judge"},
    Gkd: {"teacher": {"path": "org/large"}},
    Rank: {"samples": "drawn"}, LmEval: {"tasks": ["arc_easy"]}, Mix: {"sources": [HUB, HUB]},
    Python: {"file": "a.py"}, PythonReward: {"file": "a.py"},
}  # fmt: skip
ONE_CASE = [
    pytest.param(cls, name, case, id=f"{kind}-{cls.method}-{name}")
    for kind, classes in CASES.items()
    for cls, cases in classes.items()
    for name, case in cases.items()
]


READING = {"max_row_mb", "max_file_mb", "sample_by", "streaming", "buffer_size"}
"""Settings of reading that every table has: tests/data/test_tables.py sets them."""
OF_ROWS = {"num_samples", "replace"}
"""Settings that act before any data set's `row`: tests/data/test_samples.py sets them."""


def test_every_builtin_method_and_every_field_of_its_settings_has_a_case():
    registry = Registry.discover()
    builtin = {
        (record.kind, record.method)
        for record in registry.records(load=False)
        if record.distribution == "llmft"
    }
    assert builtin == {(kind, cls.method) for kind, classes in CASES.items() for cls in classes}
    missing = {
        f"{kind} {cls.method}": fields
        for kind, classes in CASES.items()
        for cls, cases in classes.items()
        if (fields := without_case(cls.Config, cases) - READING - OF_ROWS)
    }
    missing |= {
        block.__module__: fields
        for block, cases in BLOCKS.items()
        if (fields := without_case(block, cases))
    }
    assert missing == {}
    nested = {
        info.annotation
        for classes in CASES.values()
        for cls in classes
        for info in cls.Config.model_fields.values()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
    }
    assert nested == {*BLOCKS, DropRows}  # tests/data/test_dropping.py has the cases of `drop`


@pytest.mark.parametrize(("cls", "name", "case"), ONE_CASE)
def test_a_setting_of_a_method_acts(cls, name, case, tmp_path, monkeypatch):
    needed = {"method": cls.method, **NEEDED.get(cls, {})}
    if name == "data_files":  # in place of a path
        needed.pop("path", None)
    check(cls.Config, name, case, Lab(tmp_path, monkeypatch), **needed)


@pytest.mark.parametrize(
    ("block", "name"), [(block, name) for block, cases in BLOCKS.items() for name in cases]
)
def test_a_column_acts(block, name, tmp_path, monkeypatch):
    check(block, name, BLOCKS[block][name], Lab(tmp_path, monkeypatch))
