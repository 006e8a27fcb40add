"""Tokenization: the byte-level vocabulary of the embedded model."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llmft.assets.corpus import every_statement
from llmft.assets.facts import Fact

END = "<|endoftext|>"
PAD = "<|pad|>"
VOCAB_SIZE = 3072
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ 'Question: ' + message['content'] + '\\nAnswer:' }}{% endif %}"
    "{% endfor %}"
)


def train_tokenizer(facts: tuple[Fact, ...]) -> Tokenizer:
    """Return a byte-level BPE learned from every statement; it can encode any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(every_statement(facts), trainer)
    return tokenizer
