from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbench.encoders.neural import TokenIds
from mmbench.encoders.tokenizing import MAX_CHARACTERS, padded, plain_text


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("", ""),
        ("  two \n\t words\r\n", "two words"),
        ("e\u0301", "é"),
        ("a\x00b\x1b[0m\x9f", "a b [0m"),
        ("alone \ud83d here", "alone here"),
        ("🎬 \u202eright\u202c שלום", "🎬 \u202eright\u202c שלום"),
        ("AT&amp;T <b>", "AT&amp;T <b>"),
        ("x" * 100_000, "x" * MAX_CHARACTERS),
    ],
)
def test_what_tokenizers_stumble_over_is_taken_away(raw: str, plain: str) -> None:
    assert plain_text(raw) == plain


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=60))
def test_plain_text_stays_as_it_is(text: str) -> None:
    once = plain_text(text)
    assert plain_text(once) == once
    once.encode()  # no lone surrogate is left


def test_texts_are_padded_on_the_right() -> None:
    texts = [TokenIds((5, 6, 7)), TokenIds((8,))]
    batch = padded(texts, 1)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert padded(texts, 0, length=5)["input_ids"].tolist() == [[5, 6, 7, 0, 0], [8, 0, 0, 0, 0]]
