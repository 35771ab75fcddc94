"""data/settings.py: settings files are read strictly; each fault is one line with the file and the key."""

from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from cxrclip.data.settings import checked, read_settings
from cxrclip.errors import InputError


class Inner(BaseModel, extra="forbid"):
    count: Annotated[int, Field(strict=True, ge=1)]
    names: list[str] = []


class Outer(BaseModel, extra="forbid"):
    parts: dict[str, Inner]
    where: tuple[str, ...] = ()


@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_both_formats_are_read(tmp_path, name):
    (tmp_path / name).write_text('{"a": {"ü": [1, null]}}', encoding="utf-8")
    assert read_settings(tmp_path / name) == {"a": {"ü": [1, None]}}


def test_a_mapping_may_take_over_another_and_change_it(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {one: 1, two: 2}\nb: {<<: *a, two: 3}\n")
    assert read_settings(tmp_path / "a.yaml")["b"] == {"one": 1, "two": 3}


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.yaml", "a: [", "malformed"),
    ("a.json", "{", "malformed"),
    ("a.yaml", "", "`name: value` lines"),
    ("a.json", "[1]", "`name: value` lines"),
    ("a.yaml", "a:\n  b: 1\n  b: 2\n", "line 2: 'b' is given twice"),
    ("a.json", '{"a": {"b": 1, "b": 2}}', "'b' is given twice"),
    ("a.yaml", "a: !!python/name:os.system", "malformed"),
])
def test_faults_of_a_file(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_settings(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot be read"):
        read_settings(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(("value", "message"), [
    ({"parts": {"a": {"count": 0}}}, "x.yaml: parts: a: count: Input should be greater than or equal to 1, found 0"),
    ({"parts": {"a": {"count": True}}}, "x.yaml: parts: a: count: Input should be a valid integer, found True"),
    ({"parts": {"a": {"count": 1, "names": "b"}}}, "x.yaml: parts: a: names: a list is needed, found 'b'"),
    ({"parts": {"a": {"count": 1, "names": ["b", 3]}}}, "x.yaml: parts: a: names: item 2: text is needed, found 3"),
    ({"parts": {"a": {"cuont": 1}}}, "x.yaml: parts: a: unknown key 'cuont'"),
    ({"parts": {"a": {}}}, "x.yaml: parts: a: 'count' is missing"),
    ({"parts": {7: {"count": 1}}}, "x.yaml: parts: 7: text is needed, found 7"),
    ({"parts": {}, "where": "b"}, "x.yaml: where: a list is needed, found 'b'"),
    ({"part": {}}, "x.yaml: unknown key 'part': known are parts, where"),
    ([], "x.yaml: `name: value` lines are needed, found []"),
])
def test_faults_of_values(value, message):
    with pytest.raises(InputError) as caught:
        checked(Outer, value, "x.yaml")
    assert str(caught.value) == message


def test_a_long_value_is_cut():
    with pytest.raises(InputError) as caught:
        checked(dict[str, str], {"a": ["word"] * 1000}, "x.yaml")
    assert len(str(caught.value)) < 120
