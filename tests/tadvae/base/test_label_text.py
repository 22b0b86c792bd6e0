"""Labels as people write them: numbers, missing values, spellings of the control, combinations."""

import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tadvae.base.labels import as_text, is_blank, label_text, like_control, split_label


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.0, "1"),
        (2.5, "2.5"),
        (np.float32(3), "3"),
        (np.int8(4), "4"),
        (np.True_, "True"),
        ("a", "a"),
    ],
)
def test_numbers_and_booleans_as_text(value, text):
    assert label_text(value) == text


def test_settings_as_text():
    assert as_text({0: [1, False, "a"]}) == {"0": ["1", "False", "a"]}
    for value in (None, datetime.date(2020, 1, 1)):
        with pytest.raises(ValueError, match="in quotes"):
            as_text(value)


def test_missing_values():
    assert all(is_blank(text) for text in ("nan", "NA", "None", "", "  ", "<NA>", " NaN "))
    assert not any(is_blank(text) for text in ("NANS", "Na+", "unknown", "0"))


@pytest.mark.parametrize(
    "name", ["control", "Ctrl", "CONTROL", "non-targeting", "Non_Targeting", "NON TARGETING"]
)
def test_like_a_control(name):
    assert like_control(name, {"Non-targeting"})
    assert not like_control(name, {name})


@pytest.mark.parametrize("name", ["CTRL1", "controlled", "-1", "10", "DMSO", ""])
def test_not_like_a_control(name):
    assert not like_control(name, {"1", "1.0", "NT"})


@pytest.mark.parametrize(
    ("text", "separator", "parts"),
    [
        ("A+B", "+", ["A", "B"]),
        ("A+B", None, ["A+B"]),
        ("(+)-JQ1", "+", ["(+)-JQ1"]),
        ("(+)-JQ1+Nutlin-3a", "+", ["(+)-JQ1", "Nutlin-3a"]),
        ("[3+2]{a+b}+C", "+", ["[3+2]{a+b}", "C"]),
        ("A(B+C", "+", ["A(B", "C"]),
        (")A+B(", "+", [")A", "B("]),
        ("A)(B", ")(", ["A", "B"]),
        ("A, B,C", ",", ["A", " B", "C"]),
    ],
)
def test_split(text, separator, parts):
    assert split_label(text, separator) == parts


@given(st.text("A+-()[]", max_size=12), st.sampled_from(["+", "-", "+-", "(", "A"]))
def test_parts_make_the_label_again(text, separator):
    assert separator.join(split_label(text, separator)) == text
