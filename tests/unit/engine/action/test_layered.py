"""A mapping that is cheap to change behaves like a dictionary."""

from hypothesis import given
from hypothesis import strategies as st

from flatline.engine.action.layered import Layered, layered


@given(
    many=st.dictionaries(st.integers(0, 400), st.integers(), max_size=300),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers()), max_size=400),
)
def test_it_reads_as_a_dictionary_after_any_changes_and_what_it_was_stays(many, changes) -> None:
    expected, found = dict(many), layered(many)
    for key, value in changes:
        before, copy = found, dict(found)
        expected[key] = value
        found = found.with_entry(key, value)
        assert len(before) == len(copy)
    assert dict(found) == expected == dict(found.items())
    assert list(found) == list(expected)
    assert list(found.values()) == list(expected.values())
    assert (len(found), found.get(401), 401 in found) == (len(expected), None, False)
    assert all(key in found and found[key] == value for key, value in expected.items())
    assert layered(found) is found
    assert found == Layered(expected)


def test_what_it_is_made_of_may_change_later() -> None:
    given_ = {1: 1}
    found = layered(given_).with_entry(2, 2)
    given_[3] = 3
    assert dict(found) == {1: 1, 2: 2}


@given(
    many=st.dictionaries(st.integers(0, 20), st.integers(), max_size=20),
    few=st.dictionaries(st.integers(0, 20), st.integers(), max_size=20),
    gone=st.integers(0, 20),
)
def test_it_is_without_a_key_what_a_dictionary_is(many, few, gone) -> None:
    found, expected = layered(many), many | few
    for key, value in few.items():
        found = found.with_entry(key, value)
    left = found.without(gone)
    assert dict(found) == expected
    expected.pop(gone, None)
    assert dict(left) == expected
    assert (len(left), gone in left) == (len(expected), False)
