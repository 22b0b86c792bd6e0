"""YAML and JSON of files: read within limits, or one sentence with the line; quick whatever the text is."""

import json
import time
from contextlib import suppress

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tadvae.base.config import Config, override
from tadvae.base.documents import DEEPEST, LARGEST, parse_json, parse_yaml
from tadvae.base.errors import UserError
from tadvae.model.run_folder import RunFolder
from tadvae.store.spec import load_spec

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3", 3, ["'a'", "given twice"]),
        ("a: 1\nb:\n  c: 2\n  'c': 3", 4, ["'c'", "given twice"]),
        ("a: {1: x, 1.0: y}", 1, ["1.0", "given twice"]),
        ("a: 1\nb: &b [*b]", 2, ["alias", "inside"]),
        ("a: &a\n  b: *a", 1, ["alias", "inside"]),
        (BOMB, None, ["aliases written out"]),
        (MERGES, None, ["aliases written out"]),
        ("x: &x " + "y" * 3_000_000 + "\nz: [*x, *x, *x, *x]", None, ["aliases written out"]),
        ("a: " + "[" * 5000, 1, [f"more than {DEEPEST} levels"]),
        ("a: " + "{b: " * 5000, 1, [f"more than {DEEPEST} levels"]),
        ("a: 1\nb: " + "9" * 6000, 2, ["999", "more than 100 characters"]),
        ("b: 0x" + "f" * 6000, 1, ["0xfff", "more than 100 characters"]),
        ("b: " + "1:" * 5000 + "1.5", 1, ["more than 100 characters"]),
        ("b: 0x10000000000000000", 1, ["64 bits"]),
        ("a: 1\nb: 2024-99-99", 2, ["2024-99-99", "no timestamp", "quotes"]),
        ("b: !!int many", 1, ["'many'", "no int"]),
        ("b: !!bool many", 1, ["'many'", "no bool"]),
        ("? [a, b]\n: 1", 1, ["not valid YAML"]),
        ("a: 1\n---\nb: 2", None, ["not valid YAML"]),
        ('a: "\\x00', None, ["not valid YAML"]),
        ("a: \x00", None, ["not valid YAML"]),
        ("a: \udcff", None, ["UTF-8"]),
    ],
)
def test_what_is_not_read(refused, text, line, words):
    began = time.monotonic()
    sentence = refused(parse_yaml, text, "spec.yaml")
    assert time.monotonic() - began < 5
    assert sentence.startswith("spec.yaml" if line is None else f"spec.yaml, line {line}:")
    for word in words:
        assert word in sentence


def test_a_text_that_is_too_long(refused):
    assert "shorter" in refused(parse_yaml, "#" * (LARGEST + 1), "x")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]",
        "x: {y: &y {<<: &z {k: 1, l: 1}, k: 2}}\nb: {<<: *y, k: 3}",
        "a: 2024-01-01\nb: 1e3\nc: .inf\nd: ~\ne: true\nf: 18446744073709551615\n=: 3",
        "",
        "# nothing",
        "[1, 2]",
        "a: 'ü'",
    ],
)
def test_what_yaml_means_stays(text):
    assert parse_yaml(text, "x") == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text", ["007", "0x1F", "1_000", "12:30:45", "+5", ".5", "5.", "1.50", "no", "yes", "On", "off"]
)
def test_what_is_no_usual_number_or_boolean_stays_as_it_is_written(text):
    """A label is what its author wrote; where a number or a boolean is expected, it becomes one."""
    for data in (parse_yaml(text, "x"), *parse_yaml(f"[{text}]", "x"), *parse_yaml(f"{text}: 1", "x")):
        assert data == text
    assert parse_yaml(f"[{text}, '{text}']", "x") == [text, text]

    class Settings(Config):
        label: str
        flag: bool = False
        number: float = 0

    kind = "flag" if text.isalpha() else "number"
    expected = {"007": 7, "1_000": 1000, "no": False, "yes": True, "On": True, "off": False}
    with_number = f"label: {text}\n{kind}: {text}" if text not in ("0x1F", "12:30:45") else f"label: {text}"
    found = Settings.load_text(with_number, "x")
    assert found.label == text
    assert text not in expected or getattr(found, kind) == expected[text]


@pytest.mark.parametrize(
    "text", ["7", "-7", "0", "1.0", "0.25", "1.0e-05", "1.0e+22", "true", "False", "TRUE"]
)
def test_usual_numbers_and_booleans_are_some(text):
    found = parse_yaml(text, "x")
    assert found == yaml.safe_load(text)
    assert type(found) is type(yaml.safe_load(text))


@given(st.floats() | st.integers(-(2**63), 2**64 - 1) | st.booleans())
@settings(max_examples=50)
def test_a_written_number_is_read_as_one(value):
    found = parse_yaml(yaml.safe_dump([value]), "x")[0]
    assert type(found) is type(value)
    assert found == value or (found != found and value != value)


def test_an_equals_sign_is_text():
    assert parse_yaml("separator: =", "x") == {"separator": "="}


def test_every_yaml_of_a_user_is_read_so(refused, tmp_path):
    (tmp_path / "spec.yaml").write_text("datasets: []\nlayout: {}\ndatasets: []\n")
    assert "spec.yaml, line 3: not valid YAML (the key 'datasets' is given twice)" in refused(
        load_spec, tmp_path / "spec.yaml"
    )
    assert "--set seed" in refused(override, {}, ["seed=" + "9" * 6000])
    assert "'epochs' is given twice" in refused(override, {}, ["train={epochs: 1, epochs: 2}"])
    (tmp_path / "config.yaml").write_text(BOMB)
    assert "config.yaml" in refused(RunFolder(tmp_path).config)


scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
)
documents = st.recursive(
    scalars, lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(), below, max_size=4)
)


@given(documents)
@settings(max_examples=30)
def test_what_this_program_writes_is_read(data):
    assert parse_yaml(yaml.safe_dump(data), "x") == data
    assert parse_json(json.dumps(data)) == data


@given(st.text("ab:-[]{},&*!|>#?\"'%@<=0.1e~ \n\t", max_size=60) | st.text(max_size=30))
@settings(max_examples=200)
def test_any_text_is_read_or_refused(text):
    with suppress(UserError):
        parse_yaml(text, "x")
    with suppress(ValueError):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * (DEEPEST + 2) + "]" * (DEEPEST + 2),
        '{"a":' * 5000 + "1" + "}" * 5000,
        "9" * 6000,
        "9" * 90,
        '["\\ud800"]',
        "{",
        b"\xff",
    ],
)
def test_json_that_is_not_read(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 6000, "[]", "{"])
def test_a_damaged_description_of_a_run(refused, tmp_path, value):
    (tmp_path / "run.json").write_text(value)
    assert "damaged run" in refused(RunFolder(tmp_path).about)
    (tmp_path / "log").mkdir()
    (tmp_path / "log/steps-000000000.jsonl").write_text(f'{{"step": {value}}}\n')
    if value != "[]":
        assert "damaged run" in refused(RunFolder(tmp_path).steps)
