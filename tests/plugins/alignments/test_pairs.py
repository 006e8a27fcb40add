"""Pairs of token rows: nothing but the answers counts, no answer is cut, prompts are shared."""

from __future__ import annotations

import pytest
import torch
from llmft_alignments.pairs import pair_logps

from llmft.api import Encoded, EncodedPair
from llmft.api.errors import DataError
from llmft.api.train_settings import TrainSettings
from llmft.data.encoding import Encoder
from llmft.data.pair_encoding import encode_pairs, prompt_length
from llmft.modeling import attention
from llmft.modeling.tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer

from .conftest import PAIRS, encoded

END = 256


def packed(model):
    attention.register()
    model.set_attn_implementation(attention.NAME)
    return model


def test_a_pair_is_a_prompt_and_two_answers_each_with_its_end(pairs):
    for record, pair in zip(PAIRS, pairs, strict=True):
        for row, answer in ((pair.chosen, record["chosen"]), (pair.rejected, record["rejected"])):
            assert bytes(row.input_ids[:-1]).decode() == record["prompt"] + answer
            assert row.input_ids[-1] == row.labels[-1] == END
            assert prompt_length(row) == len(record["prompt"])
        assert pair.chosen.input_ids[: pair.shared] == pair.rejected.input_ids[: pair.shared]
        assert pair.shared >= prompt_length(pair.chosen)


def test_the_log_likelihood_is_that_of_the_answers_tokens_by_hand(pairs):
    model = tiny_llama()
    with torch.no_grad():
        found = pair_logps(model, pairs, share=False)
        for number, pair in enumerate(pairs):
            for side, row in enumerate((pair.chosen, pair.rejected)):
                logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
                answer = range(prompt_length(row), len(row.input_ids))
                by_hand = sum(float(logits[t - 1, row.input_ids[t]]) for t in answer)
                assert float(found[number, side]) == pytest.approx(by_hand, abs=1e-4)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_sharing_prompts_changes_no_number_and_no_gradient(make, pairs):
    found = []
    for share in (False, True):
        model = packed(make())
        logps = pair_logps(model, pairs, share)
        logps.sum().backward()
        found.append([logps.detach(), *(p.grad for p in model.parameters())])
    for apart, together in zip(*found, strict=True):
        torch.testing.assert_close(together, apart, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("share", [False, True])
def test_other_rows_and_padding_change_no_log_likelihood(pairs, share):
    model = packed(tiny_llama()) if share else tiny_llama()
    with torch.no_grad():
        together = pair_logps(model, pairs, share)
        alone = torch.cat([pair_logps(model, [pair], share) for pair in pairs])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)


def test_no_prompt_token_is_in_a_log_likelihood(pairs):
    """With a model that sees nothing before a token, another prompt changes nothing."""
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token is as likely, whatever stands before it
        model.lm_head.weight[65] = 1.0  # and so much more likely than any other after some states
    other = [{**record, "prompt": record["prompt"].upper() + "??"} for record in PAIRS]
    with torch.no_grad():
        model.lm_head.weight.zero_()
        found = [pair_logps(model, encoded(records), share=False) for records in (PAIRS, other)]
    torch.testing.assert_close(found[0], found[1])
    counts = torch.tensor([[p.chosen.n_labels, p.rejected.n_labels] for p in pairs])
    torch.testing.assert_close(found[0], -counts * torch.tensor(300.0).log(), atol=1e-3, rtol=1e-5)


def test_what_follows_an_answer_is_no_part_of_it(pairs):
    """Labels of -100 behind the answer leave its log-likelihood as it was."""
    pair = pairs[0]
    tail = Encoded((*pair.chosen.input_ids, 65, 66, 67), (*pair.chosen.labels, -100, -100, -100))
    longer = EncodedPair(tail, pair.rejected, pair.shared)
    with torch.no_grad():
        one, other = (pair_logps(tiny_llama(), [p], share=False) for p in (pair, longer))
    torch.testing.assert_close(one, other)


def test_a_pair_too_long_loses_the_start_of_its_prompt_and_no_answer():
    limit = 24
    long, whole = encoded(PAIRS[:1], limit=limit)[0], encoded(PAIRS[:1])[0]
    assert len(long.rejected.input_ids) == limit
    assert long.rejected.input_ids == whole.rejected.input_ids[-limit:]
    cut = len(whole.rejected.input_ids) - limit
    assert long.chosen.input_ids == whole.chosen.input_ids[cut:]
    assert long.chosen.input_ids[-1] == END
    assert (long.chosen.n_labels, long.rejected.n_labels) == (
        whole.chosen.n_labels, whole.rejected.n_labels
    )  # fmt: skip


def test_the_token_that_begins_every_text_stays():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "</s>"
    encoder = Encoder(tokenizer, 24)
    # As Llama's tokenizer does.
    encoder._ids = lambda texts: [[END, *text.encode()] for text in texts]
    from llmft.api import PreferenceRow

    (pair,), report = encode_pairs(encoder, [PreferenceRow(**PAIRS[0])], TrainSettings())
    assert pair.chosen.input_ids[0] == pair.rejected.input_ids[0] == END
    assert len(pair.rejected.input_ids) == 24
    assert report.counts == {"with the start of the prompt cut": 1}


def test_answers_too_long_are_dropped_counted_and_limited():
    rows = [{"prompt": "p", "chosen": "c", "rejected": "r"}] * 30
    rows.append({"prompt": "p", "chosen": "c" * 99, "rejected": "r"})
    assert len(encoded(rows, limit=20)) == 30
    with pytest.raises(DataError, match="an answer alone is too long") as caught:
        encoded(rows[-5:], limit=20)
    assert caught.value.faults[0].code == "E104"
    with pytest.raises(DataError, match="the pair has 101 tokens, more than 20"):
        encoded(rows, limit=20, on_long_row="fail")


def test_d10_answers_of_the_same_tokens_are_dropped_and_counted():
    rows = [{"prompt": "p", "chosen": "c", "rejected": "r"}] * 30
    rows.append({"prompt": "p", "chosen": "c", "rejected": "c"})
    assert len(encoded(rows)) == 30


def test_rows_of_another_kind_are_refused():
    from llmft.api import TextRow

    with pytest.raises(DataError, match="a TextRow is no preference"):
        encode_pairs(Encoder(tiny_tokenizer(), None), [TextRow("a", "x:1")], TrainSettings())
