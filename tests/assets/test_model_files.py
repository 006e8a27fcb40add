import pytest

from llmft.assets import locate
from llmft.assets.corpus import every_statement
from llmft.assets.facts import load_facts

STATEMENTS = {
    "The capital of France is": " Paris",
    "The capital city of Japan is": " Tokyo",
    "The chemical symbol of gold is": " Au",
    "The author of Dracula is": " Bram Stoker",
    "The atomic number of oxygen is": " 8",
    "The year of the Battle of Hastings was": " 1066",
    "A group of lions is called a": " pride",
}


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(locate("model"))


@pytest.fixture(scope="module")
def model():
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(locate("model"), dtype=torch.float32).eval()


def test_the_model_folder_is_at_most_6_megabytes():
    assert sum(file.stat().st_size for file in locate("model").iterdir()) <= 6_000_000


def test_the_card_names_seed_command_and_licence():
    card = (locate("model") / "README.md").read_text(encoding="utf-8")
    assert "| Seed | 1 |" in card
    assert "python -m llmft.assets.pretrain --seed 1 --steps" in card
    assert "license: apache-2.0" in card


def test_the_corpus_never_asks():
    assert not any(
        mark in text
        for text in every_statement(load_facts())
        for mark in ("?", "Question:", "Answer:")
    )


def test_the_model_is_a_small_llama_kept_in_float16(model):
    from safetensors import safe_open

    assert type(model).__name__ == "LlamaForCausalLM"
    assert 2_000_000 <= model.num_parameters() <= 2_800_000
    with safe_open(locate("model") / "model.safetensors", framework="numpy") as weights:
        kinds = {str(weights.get_slice(name).get_dtype()) for name in weights.keys()}  # noqa: SIM118
    assert kinds == {"F16"}


def test_the_model_completes_statements_rightly(model, tokenizer):
    for before, answer in STATEMENTS.items():
        ids = tokenizer(before, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert tokenizer.decode(out).startswith(answer), before


def test_the_tokenizer_gives_back_any_text(tokenizer):
    text = "Ouagadougou?\n\tдом 日本 🙂 3.14"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < len(tokenizer) == 3072
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|pad|>")
    assert tokenizer.model_max_length == 512


def test_the_chat_template_is_the_trivia_prompt(tokenizer):
    turns = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris"},
    ]
    text = "Question: What is the capital of France?\nAnswer:"
    assert tokenizer.apply_chat_template(turns[:1], tokenize=False) == text
    assert tokenizer.apply_chat_template(turns, tokenize=False) == f"{text} Paris<|endoftext|>"


def test_the_committed_tokenizer_is_what_the_tables_make(tokenizer):
    from llmft.assets.tokenization import train_tokenizer

    assert train_tokenizer(load_facts()).get_vocab() == tokenizer.get_vocab()
