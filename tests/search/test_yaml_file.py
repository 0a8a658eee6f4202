"""YAML files: what they mean, what is refused, and where."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafront.search.yaml_file import MAX_BYTES, MAX_NODES, locate, read_yaml
from lorafront.spaces.errors import InvalidInput, Problem

KEYS = st.text("abcXYZ é日_-.:#", min_size=1, max_size=9)
TEXTS = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)


@pytest.fixture(scope="session")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("yaml") / "search.yaml"


def read(file, text):
    file.write_text(text, encoding="utf-8", newline="")
    return read_yaml(file)[0]


def refusal(file, text):
    """The lines of the refusal of a text."""
    with pytest.raises(InvalidInput) as caught:
        read(file, text)
    return [str(problem) for problem in caught.value.problems]


def at(data, path):
    for part in path:
        data = data[part]
    return data


@given(data=st.dictionaries(KEYS, VALUES, max_size=5))
def test_json_reads_as_what_it_says(file, data):
    """YAML contains JSON: any mapping written as JSON is read back unchanged, types included."""
    found = read(file, json.dumps(data, ensure_ascii=False))
    assert json.dumps(found) == json.dumps(data)


@given(data=st.dictionaries(KEYS, VALUES, max_size=5))
def test_positions_lead_to_keys_and_entries(file, data):
    """The line and column of every key and every entry are those at which it stands in the file."""
    file.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")
    lines = file.read_text(encoding="utf-8").split("\n")
    for path, (line, column) in read_yaml(file)[1].items():
        here = path[-1] if isinstance(path[-1], str) else at(data, path)
        opening = json.dumps(here, ensure_ascii=False, indent=1)[:1] if isinstance(here, (dict, list)) else None
        assert lines[line - 1][column - 1 :].startswith(opening or json.dumps(here, ensure_ascii=False)), path


@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
@given(text=st.text("ab01-+.:,[]{}&*!?|'\"#%@ \n\t<=e", max_size=30))
def test_any_text_is_read_or_refused(file, text):
    """Whatever stands in a file, the outcome is a mapping or InvalidInput that names the file."""
    try:
        assert isinstance(read(file, text), dict)
    except InvalidInput as error:
        assert all(str(problem).startswith(str(file)) for problem in error.problems)  # noqa: PT017  # or it is read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), (".5", 0.5), ("1.", 1.0), ("0.0", 0.0), ("-.inf", -math.inf), ("1_000", 1000),
        ("0x10", 16), ("0o17", 15), ("-3", -3), ("on", "on"), ("yes", "yes"), ("true", True), ("False", False),
        ("~", None), ("", None), ("null", None), ("'010'", "010"), ('"2020-01-01"', "2020-01-01"), ("<= 12", "<= 12"),
        ("1:30", "1:30"), ("5e", "5e"), ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(file, text, value):
    """`1e-4` is a number and `on` is text, and a number keeps its type."""
    found = read(file, f"a: {text}")["a"]
    assert (found, type(found)) == (value, type(value))


def test_nan_is_a_number(file):
    """`.nan` is read as the number that it is; whoever wants finite ones refuses it with its key."""
    assert math.isnan(read(file, "a: .nan")["a"])


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a: 010", "1:1  a", "a number must not start with 0 (got 010); is it 10?"),
        ("a: [1, 08]", "1:8  a[1]", "a number must not start with 0 (got 08); is it 8?"),
        ("b: 1\na: 1\na: 2", "2:1  a", "duplicate key 'a' (lines 2 and 3)"),
        ("a:\n  b: 1\n  'b': 2", "2:3  a.b", "duplicate key 'b' (lines 2 and 3)"),
        ("a: 1\ntrue: 2", "2:1  true", "keys must be text (got 'true'); quote it"),
        ("1: 2", "1:1  1", "keys must be text (got '1'); quote it"),
        ("~: 2", "1:1  ~", "keys must be text (got '~'); quote it"),
        ("x: &a {b: 1}\ny: {<<: *a}", "2:5  y.<<", "keys must be text"),
        ("a: &x {b: {c: *x}}", "1:12  a.b.c", "an alias must not contain itself"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "1:1  a",
            "YAML tags are not allowed (got tag:yaml.org,2002:python",
        ),
        ("a: [!mine 1]", "1:5  a[0]", "YAML tags are not allowed (got !mine)"),
        ("a: !!set {b}", "1:1  a", "YAML tags are not allowed"),
        ("a: 2020-01-01", "1:1  a", "a date is not expected here (got 2020-01-01); quote it if it is text"),
    ],
)
def test_surprises_are_refused_where_they_stand(file, text, place, message):
    """What YAML would read in a way that nobody means is refused with line, column, key and fix."""
    [line] = refusal(file, text)
    assert line.startswith(f"{file}:{place}: {message}")


@pytest.mark.parametrize(
    ("text", "place", "message", "shown"),
    [
        ("name: x\na: [1", "2:6", "expected ',' or ']'", "    a: [1\n         ^"),
        ("a: b: c", "1:5", "mapping values are not allowed here", "    a: b: c\n        ^"),
        ("a:\n\tb: 1", "2:1", "tabs are not allowed for indentation in YAML; use spaces", "    \tb: 1\n    ^"),
        ("a: *nope", "1:4", "undefined alias 'nope'", "    a: *nope\n       ^"),
        ("a: 1\n---\nb: 2", "2:1", "another document", "    ---\n    ^"),
        ("a: @x", "1:4", "'@' that cannot start any token", "    a: @x\n       ^"),
    ],
)
def test_syntax_errors_show_the_line_with_a_caret(file, text, place, message, shown):
    """Malformed YAML is shown with file, line and column, and the line with a caret below the column."""
    [line] = refusal(file, text)
    assert line.startswith(f"{file}:{place}  malformed YAML: ")
    assert message in line
    assert line.endswith(shown)


@pytest.mark.parametrize(
    ("text", "got"), [("", "nothing"), ("# only this\n", "nothing"), ("- 1\n- 2", "a list"), ("5", "a single value")]
)
def test_the_top_is_a_mapping(file, text, got):
    """A file that is no mapping is refused with what it is."""
    assert refusal(file, text) == [f"{file}: expected a mapping of keys such as name, model, data (got {got})"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a: \xff", "is not UTF-8: byte 0xff at offset 3"),
        (b"a: \x00", "special characters are not allowed"),
        (b"a: " + b"x" * MAX_BYTES, "a search file has at most 1,000,000"),
    ],
)
def test_files_that_are_no_text_are_refused(file, raw, message):
    """Bytes that are no UTF-8, control characters and huge files are refused."""
    file.write_bytes(raw)
    with pytest.raises(InvalidInput, match=message):
        read_yaml(file)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    """A missing file, and a folder in its place, are refused with the path and the system's reason."""
    for path, reason in ((tmp_path / "no.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InvalidInput, match=f"cannot read {path}: {reason}"):
            read_yaml(path)


def test_byte_order_mark_and_windows_lines_are_read(file):
    """A byte order mark and carriage returns are no part of keys and values, and do not move positions."""
    file.write_bytes(b"\xef\xbb\xbfa: x\r\nb: y\r\n")
    assert read_yaml(file) == ({"a": "x", "b": "y"}, {("a",): (1, 1), ("b",): (2, 1)})


def test_aliases_are_followed(file):
    """An alias stands for what it names, at the alias' own path."""
    assert read(file, "a: &x [1, 2]\nb: *x") == {"a": [1, 2], "b": [1, 2]}


def test_nested_aliases_do_not_explode(file):
    """Nine lines that would become a thousand million values are refused, with one problem."""
    lines = ["a0: &a0 [1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))]
    [line] = refusal(file, "\n".join(lines))
    assert "too many values or aliases" in line


def test_long_files_are_refused(file):
    """A file of more values than any search has is refused."""
    [line] = refusal(file, f"a: [{'1,' * MAX_NODES}]")
    assert "too many values" in line


def test_all_surprises_are_reported_at_once(file):
    """Everything but syntax is reported together, in the order of the file."""
    lines = refusal(file, "a: 010\nb: !x 1\nb: 2\n3: 4\nc: [2020-01-01]")
    assert [line.removeprefix(f"{file}:").partition("  ")[0] for line in lines] == ["1:1", "2:1", "2:1", "4:1", "5:5"]


@pytest.mark.parametrize(
    ("path", "where"),
    [
        (("space", "rank", 1), ":3:13  space.rank[1]: wrong"),
        (("space", "alpha"), ":2:1  space.alpha: wrong"),
        (("budget", "trials"), "  budget.trials: wrong"),
        ((), "  wrong"),
    ],
)
def test_problems_stand_at_the_nearest_key(file, path, where):
    """A problem is shown at its key, else at the nearest enclosing one, else at the file."""
    read(file, "name: x\nspace:\n  rank: [4, 0]\n")
    [problem] = locate([Problem(path, "wrong")], file, read_yaml(file)[1])
    assert str(problem) == f"{file}{where}"


def test_problems_are_sorted_by_place(file):
    """Problems come in the order of the file, those without a place first."""
    positions = {("a",): (1, 1), ("b",): (2, 1), ("b", "c"): (2, 5)}
    problems = [Problem(("b", "c"), "4"), Problem(("b",), "3"), Problem((), "1"), Problem(("a",), "2")]
    assert [str(problem)[-1] for problem in locate(problems, file, positions)] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, id=text[:12])
        for reason, texts in {
            "int() or float() fails on what ruamel tagged as a number": ["0x_", "-_", "._", "1" * 5000],
            "YAML's own tags pass although tags are refused": [
                "!!int x",
                "!!float x",
                "!!str 5",
                "!!bool x",
                "!!seq x",
            ],
            "deep nesting ends in RecursionError": ["[" * 900 + "]" * 900],
        }.items()
        for text in texts
    ],
)
def test_odd_values_are_refused(file, text):
    """Numbers without digits, forced types and bottomless nesting are refused, not crashed on."""
    assert refusal(file, f"a: {text}")


def test_comment_before_and_inside_a_folded_text(file):
    """A folded text after a comment, with a comment of its own, is read or refused."""
    try:
        read(file, "#\n> #,")
    except InvalidInput:
        return


def test_keys_that_are_lists_are_refused_in_plain_words(file):
    """A key that is a list or a mapping is refused without the names of Python classes."""
    assert "ScalarNode" not in refusal(file, "? [a, b]\n: 1")[0]
