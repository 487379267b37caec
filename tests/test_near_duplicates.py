"""Texts that are the same as an earlier one, or nearly so: sets of shingles, their signatures, and what is found."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.corpus.near_duplicates import (
    NUM_PERM,
    RECALL,
    Duplicate,
    band_keys,
    jaccard,
    near_duplicates,
    rows_per_band,
    shingle_hashes,
    signature,
    signatures,
)

ANY_TEXT = st.text(max_size=60)
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
FAST = settings(max_examples=60, deadline=None)


def words(first: int, last: int) -> str:
    """ "w1 w2 …": running numbers as words, of which any five in a row come once."""
    return " ".join(f"w{number}" for number in range(first, last + 1))


def found(texts: list[str], threshold: float = 0.8) -> dict[int, Duplicate]:
    return near_duplicates(lambda: texts, threshold)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        (" \n\t", 0),
        ("one", 1),
        ("one two three four", 1),  # shorter than a shingle: the whole text is one
        ("one two three four five", 1),
        ("one two three four five six", 2),
        ("one two, three four five", 2),  # the comma is a unit
        ("a b c d e " * 10, 5),  # a set: the five rotations
        ("今天天气很好", 2),  # every Han character is a unit
        ("สวัสดีครับ", 6),  # and every Thai one, vowel signs included
        ("안녕하세요 여러분", 1),  # Korean has blanks: two words
        ("x=1+2-3", 3),  # seven units
        ("😀😀😀😀😀😀", 1),  # twice the same five
    ],
)
def test_the_number_of_shingles(text, count):
    assert len(shingle_hashes(text)) == count


def test_case_and_kind_of_blanks_make_no_difference():
    assert np.array_equal(shingle_hashes("The Cat sat\non the  mat."), shingle_hashes(" the cat\tsat on the mat. "))
    assert not np.array_equal(shingle_hashes("ab c d e f"), shingle_hashes("a bc d e f"))
    assert not np.array_equal(shingle_hashes("1 + 1 = 2"), shingle_hashes("1 - 1 = 2"))


def test_jaccard_by_hand():
    # 96 shingles each; the second text begins ten words later, so that 86 of 106 are in both.
    left, right = shingle_hashes(words(1, 100)), shingle_hashes(words(11, 110))
    assert jaccard(left, right) == 86 / 106
    assert jaccard(left, left) == 1.0 and jaccard(left, shingle_hashes(words(201, 300))) == 0.0
    empty = shingle_hashes("")
    assert jaccard(empty, empty) == 1.0 and jaccard(empty, left) == 0.0


@FAST
@given(st.integers(1, 400), st.integers(0, 400), st.integers(0, 2**32 - 1))
def test_signatures_estimate_jaccard(common, apart, seed):
    values = np.random.default_rng(seed).integers(0, 2**63, common + 2 * apart, dtype=np.uint64)
    left, right = np.unique(values[: common + apart]), np.unique(np.delete(values, slice(common, common + apart)))
    exact = common / (common + 2 * apart)
    estimate = (signature(left) == signature(right)).mean()
    # Five standard errors of a share of 128 draws: a false alarm in two million.
    assert abs(estimate - exact) <= 5 * (exact * (1 - exact) / NUM_PERM) ** 0.5


def test_signatures_are_the_same_in_every_process():
    here = signatures(["one two three four five six", "今天天气很好", ""])
    assert here.dtype == np.uint32 and here.shape == (3, NUM_PERM)
    assert (here[2] == 2**32 - 1).all()
    code = (
        "from data_prep.corpus.near_duplicates import signatures; "
        "print(signatures(['one two three four five six', '今天天气很好', '']).tolist())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(here.tolist())


def test_a_long_text_is_taken_in_pieces():
    hashes = np.random.default_rng(0).integers(0, 2**63, 10_000, dtype=np.uint64)
    assert np.array_equal(signature(hashes), np.minimum(signature(hashes[:5000]), signature(hashes[5000:])))


@pytest.mark.parametrize(("threshold", "rows"), [(0.5, 3), (0.8, 6), (0.95, 16)])
def test_bands_find_pairs_at_the_threshold(threshold, rows):
    # By hand for 0.8: 128 // 6 = 21 bands of 6; 1 - (1 - 0.8**6)**21 = 0.9983; 18 bands of 7 give 0.9856.
    assert rows_per_band(threshold) == rows
    assert 1 - (1 - threshold**rows) ** (NUM_PERM // rows) >= RECALL
    keys = band_keys(signatures(["a b c d e f", "a b c d e f", "g h i j k l"]), threshold)
    assert keys.shape == (3, NUM_PERM // rows)
    assert (keys[0] == keys[1]).all() and not (keys[0] == keys[2]).any()
    assert len(np.unique(keys[0])) == len(keys[0])  # the same values in another band make another key


@FAST
@given(st.lists(ANY_TEXT, max_size=8), st.lists(st.integers(0, 100), max_size=6))
def test_identical_texts_are_always_found(texts, repeats):
    texts = texts + [texts[number % len(texts)] for number in repeats if texts]
    duplicates = found(texts)
    assert found(texts, 1.0).keys() <= duplicates.keys()
    for position, text in enumerate(texts):
        if text in texts[:position]:
            assert position in duplicates
    for position, duplicate in duplicates.items():
        assert duplicate.original < position and duplicate.original not in duplicates
        exact = jaccard(shingle_hashes(texts[position]), shingle_hashes(texts[duplicate.original]))
        assert duplicate.similarity == exact >= 0.8
        assert duplicate.identical == (texts[position] == texts[duplicate.original])


@FAST
@given(st.lists(st.text(ALPHABET, min_size=3, max_size=8), min_size=60, max_size=90, unique=True), st.data())
def test_one_changed_word_in_sixty_is_found(listed, data):
    changed = list(listed)
    changed[data.draw(st.integers(0, len(listed) - 1))] = "0"  # at most 5 of 56 shingles: similarity 51 / 61 or more
    duplicates = found([" ".join(listed), "something else altogether, and no more than that", " ".join(changed)])
    assert list(duplicates) == [2] and duplicates[2].original == 0 and not duplicates[2].identical


def test_every_duplicate_is_like_a_text_that_is_kept():
    # Each like the one before by 86 of 106; the first and the third share 76 of 116: too little.
    texts = [words(1, 100), words(11, 110), words(21, 120), "nothing of the kind", words(11, 110)]
    assert found(texts) == {1: Duplicate(0, 86 / 106, False), 4: Duplicate(0, 86 / 106, False, copy_of=1)}
    assert found(texts, 0.82) == {4: Duplicate(1, 1.0, True)}
    assert found(texts, 1.0) == {4: Duplicate(1, 1.0, True)}
    assert found(texts, 0.6) == {
        1: Duplicate(0, 86 / 106, False),
        2: Duplicate(0, 76 / 116, False),
        4: Duplicate(0, 86 / 106, False, copy_of=1),
    }


def test_half_surrogates_and_the_last_code_points_are_texts_too():
    assert found(["\ud800 x", "\ud801 x", "\ud800 x", "\U0010ffff" * 6]) == {2: Duplicate(0, 1.0, True)}


def test_no_texts_and_how_often_they_are_read():
    readings = []

    def texts(listed):
        readings.append(len(listed))
        return iter(listed)

    assert near_duplicates(lambda: texts([])) == {}
    assert near_duplicates(lambda: texts(["a", "b", "a"])) == {2: Duplicate(0, 1.0, True)}
    assert readings == [0, 3]  # no two bands agree: one reading
    near_duplicates(lambda: texts([words(1, 100), words(11, 110)]))
    assert readings == [0, 3, 2, 2]


def test_more_texts_than_one_batch():
    texts = [f"text number {number} with words of its own {number * 7}" for number in range(5000)]
    texts += [texts[4999], texts[0]]
    assert found(texts) == {5000: Duplicate(4999, 1.0, True), 5001: Duplicate(0, 1.0, True)}
