import pytest

from mmbench.data.texts import clean_text, compose


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        (None, ""),
        ("  a \t b\n\nc ", "a b c"),
        ("Tom &amp; Jerry &amp;quot;s&amp;quot;", 'Tom & Jerry "s"'),
        ("<p>one</p><br/>two", "one two"),
        ("a < b and c > d", "a < b and c > d"),
        ("nul\0 bell\x07", "nul bell"),
        ("e\u0301", "é"),
        ("nan", "nan"),  # a word, as in "nan bread", not a missing value
    ],
)
def test_clean_text(raw, cleaned):
    assert clean_text(raw) == cleaned


def test_compose_skips_what_is_missing():
    assert compose(["Toy Story", "", "Comedy"]) == "Toy Story. Comedy"
    assert compose(["", ""]) == ""
