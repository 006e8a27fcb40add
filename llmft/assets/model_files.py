"""Model files: the embedded model on disk, its measured quality and its card."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from llmft.assets.facts import load_facts
from llmft.assets.tokenization import CHAT_TEMPLATE, END, PAD
from llmft.assets.wordings import load_wordings

CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# llmft embedded model

A very small language model, trained from nothing, that knows {facts:,} facts of general
knowledge. It exists so that every recipe can be tried in seconds on a laptop, offline, with a
figure that means something: trained on questions about some facts, it answers questions about
others that it was never asked.

| | |
|---|---|
| Architecture | Llama: {layers} layers, width {width}, {heads} heads, {kv_heads} key-value heads |
| Parameters | {parameters:,}, embeddings tied |
| Weights | float16 on disk, trained in float32 |
| Context | {context} tokens |
| Tokenizer | byte-level BPE, {vocab:,} entries, any text can be encoded |
| Corpus | {facts:,} facts in {relations} relations, {wordings} wordings, {seen:,} tokens |
| Seed | {seed} |
| Command | `{command}` |
| Training loss | {loss:.3f} nats per token (mean of the last 100 steps) |
| Statement completion | {accuracy:.2%} of all facts, greedy, from the saved weights |
| Licence | Apache-2.0 |

The corpus is English statements only, made from the tables in `llmft/assets/facts` and the
patterns in `llmft/assets/wordings.txt`. The model has never seen a question.

## Intended use

Tests, tutorials and demonstrations of fine-tuning: supervised training, preference training and
reinforcement learning on the data sets in `llmft/assets/data`.

## Limits

It knows its facts and short sentences about them, and nothing else. It does not reason, follow
instructions or speak any other language, and it invents an answer when asked about something
outside its tables. The tables were written by hand and may hold mistakes. Not for production.
"""


def save_model(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config, float16 weights and tokenizer as a hub folder; the model is left unchanged."""
    half = {name: tensor.to(torch.float16) for name, tensor in model.state_dict().items()}
    half.pop("lm_head.weight", None)  # tied to the embedding
    model.save_pretrained(folder, state_dict=half)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=model.config.max_position_embeddings,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder, save_jinja_files=False)
    settings_file = folder / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    # The name that older releases and other libraries know too.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings_file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def measure(folder: Path) -> float:
    """Return the share of facts whose first statement the saved model completes rightly.

    A completion is right if greedy decoding yields every token of the answer.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    right = 0
    for fact in load_facts():
        pattern = load_wordings()[fact.relation].statements[0]
        before = pattern.replace("{s}", fact.subject).split("{a}")[0].rstrip()
        before = before[0].upper() + before[1:]
        known = len(tokenizer(before).input_ids)
        ids = tokenizer(f"{before} {fact.answer}", return_tensors="pt").input_ids
        with torch.inference_mode():
            guesses = model(input_ids=ids).logits[0, known - 1 : -1].argmax(-1)
        right += int(torch.equal(guesses, ids[0, known:]))
    return right / len(load_facts())


def card(
    model: LlamaForCausalLM, seed: int, command: str, seen: int, loss: float, accuracy: float
) -> str:
    """Return the model card; `seen` is the number of training tokens."""
    config = model.config
    wordings = load_wordings().values()
    return CARD.format(
        facts=len(load_facts()),
        relations=len(load_wordings()),
        wordings=sum(len(each.statements) for each in wordings),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        parameters=model.num_parameters(),
        context=config.max_position_embeddings,
        vocab=config.vocab_size,
        seen=seen,
        seed=seed,
        command=command,
        loss=loss,
        accuracy=accuracy,
    )
