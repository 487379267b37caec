"""Which texts of a corpus or a data set are the same as an earlier one, or nearly so.

A text is the set of its shingles, runs of five units; a unit is a word, or a single character in scripts that put no
blanks between words and for punctuation. Two texts are near-duplicates where the Jaccard similarity of their sets
reaches a threshold (Broder 1997, On the resemblance and containment of documents). MinHash signatures cut into bands
find the pairs worth looking at (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4); each such
pair is then compared exactly. Case and the kind of blanks make no difference.

The texts are read once, and a second time where bands agree. In memory lie about 200 bytes per text, and the shingles
of those that are kept and have a band in common with another.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import chain
from typing import NamedTuple

import numpy as np

from data_prep.common.batches import batched_by_length
from data_prep.common.parallel import in_order
from data_prep.corpus.text_units import TABLE_SIZE, UNSPACED

BATCH_CHARACTERS = 1 << 18  # characters that go to a worker at once
SHINGLE = 5  # units; what Lee et al. 2022 (arXiv:2107.06499, appendix A) use for documents
NUM_PERM = 128
RECALL = 0.99  # least probability with which a pair at the threshold shares a band
MOST_COMPARED = 100  # kept texts, the earliest, that one text is compared with: templates would make it quadratic
BLANK, LETTER, SINGLE = 0, 1, 2
ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: multiplication by it spreads neighbours apart


class Duplicate(NamedTuple):
    """What a text is like: an earlier text that is itself no duplicate."""

    original: int  # its position, from 0
    similarity: float  # Jaccard, 0 to 1
    identical: bool  # character by character


@cache
def _kinds() -> np.ndarray:
    """Whether a code point is a blank, part of a word, or a unit by itself; (TABLE_SIZE,) uint8."""
    kinds = np.full(TABLE_SIZE, SINGLE, np.uint8)
    for code in range(TABLE_SIZE):
        character = chr(code)
        if character.isalnum():
            kinds[code] = LETTER
        elif character.isspace():
            kinds[code] = BLANK
    for first, end in UNSPACED:
        block = kinds[first:end]
        block[block == LETTER] = SINGLE
    return kinds


def _mixed(values: np.ndarray) -> np.ndarray:
    """uint64 values spread over all 64 bits, equal ones to equal ones (the finalizer of SplitMix64, Steele 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shingle_hashes(text: str) -> np.ndarray:
    """The text's set of shingles as sorted hashes of 8 bytes, (shingles,) uint64.

    A text of fewer units than a shingle is one shingle; a text of blanks alone has none.
    """
    codes = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds()[np.minimum(codes, TABLE_SIZE - 1)]
    written = kinds != BLANK
    if not written.any():
        return np.empty(0, np.uint64)
    starts_word = (kinds == LETTER) & np.concatenate(([True], kinds[:-1] != LETTER))
    starts = np.flatnonzero(starts_word | (kinds == SINGLE))
    # The hash of a unit is a sum over its characters, each weighed by its place; a blank after it adds nothing.
    lengths = np.diff(starts, append=len(codes))
    place = np.arange(starts[0], len(codes)) - np.repeat(starts, lengths)
    characters = codes[starts[0] :].astype(np.uint64) + (place.astype(np.uint64) << np.uint64(32))
    units = np.add.reduceat(_mixed(characters) * written[starts[0] :], starts - starts[0])
    size = min(SHINGLE, len(units))
    hashes = np.zeros(len(units) - size + 1, np.uint64)
    for offset in range(size):
        hashes = _mixed(hashes * ODD + units[offset : offset + len(hashes)])
    return np.unique(hashes)


@cache
def _permutations(num_perm: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors (odd) and summands of `num_perm` permutations of the 32-bit numbers, the same in every process."""
    factors, summands = np.random.default_rng(0).integers(0, 2**32, (2, num_perm), dtype=np.uint32)
    return factors | np.uint32(1), summands


def signature(hashes: np.ndarray, num_perm: int = NUM_PERM) -> np.ndarray:
    """MinHash of a set of shingle hashes: the least value under each permutation, (num_perm,) uint32.

    The share of places in which two signatures agree estimates the Jaccard similarity of the sets, with a standard
    error of at most 0.5 / sqrt(num_perm). The empty set has the largest value everywhere.
    """
    factors, summands = _permutations(num_perm)
    least = np.full(num_perm, np.iinfo(np.uint32).max, np.uint32)
    short = hashes.astype(np.uint32)
    for start in range(0, len(short), 4096):  # a long text in pieces: 2 MB at a time
        piece = short[start : start + 4096, None] * factors + summands
        np.minimum(least, piece.min(axis=0), out=least)
    return least


def signatures(texts: Iterable[str], num_perm: int = NUM_PERM) -> np.ndarray:
    """The signatures of texts, (texts, num_perm) uint32."""
    rows = [signature(shingle_hashes(text), num_perm) for text in texts]
    return np.array(rows, np.uint32).reshape(len(rows), num_perm)


def rows_per_band(threshold: float, num_perm: int = NUM_PERM) -> int:
    """The most rows a band can have if a pair at the threshold is to agree in one with probability `RECALL`.

    More rows mean fewer pairs that are looked at in vain.
    """
    rows = 1
    while 1 - (1 - threshold ** (rows + 1)) ** (num_perm // (rows + 1)) >= RECALL and rows < num_perm:
        rows += 1
    return rows


def band_keys(signed: np.ndarray, threshold: float) -> np.ndarray:
    """A key of 8 bytes for every band of the signatures (texts, num_perm), as (texts, bands) uint64.

    Texts whose similarity is the threshold or more share a key in some band with probability `RECALL` or more.
    """
    rows = rows_per_band(threshold, signed.shape[1])
    bands = signed.shape[1] // rows
    cut = signed[:, : bands * rows].reshape(len(signed), bands, rows).astype(np.uint64)
    keys = np.broadcast_to(np.arange(bands, dtype=np.uint64), cut.shape[:2])
    for row in range(rows):
        keys = _mixed(keys * ODD + cut[:, :, row])
    return keys


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """The Jaccard similarity of two sets of shingle hashes; of two empty sets it is 1."""
    common = len(np.intersect1d(left, right, assume_unique=True))
    return common / union if (union := len(left) + len(right) - common) else 1.0


def near_duplicates(
    texts: Callable[[], Iterable[str]], threshold: float = 0.8, num_workers: int = 1
) -> dict[int, Duplicate]:
    """{position of a text: what it is like}, of all texts that are like an earlier one that is no duplicate itself.

    `texts()` gives the same texts each time it is called. A text identical to an earlier one is always found (by a hash
    of 8 bytes); one at the threshold with probability `RECALL`, and one more alike more surely. Of several texts that
    it is like, the first is named. With a threshold of 1 only identical texts count, and one reading is enough. The
    signatures are made by `num_workers` processes; the result does not depend on their number.
    """
    batches = batched_by_length(texts(), BATCH_CHARACTERS)
    # Both grow in place: arrays that are put together at the end lie in memory twice.
    digests, keys = bytearray(), bytearray()
    for _, found_keys in in_order(partial(_keys, threshold), batches, num_workers):
        for grown, values in zip((digests, keys), found_keys, strict=True):
            grown += values.tobytes()
    if not digests:
        return {}
    duplicates = _identical(np.frombuffer(digests, np.uint64))
    if threshold < 1:
        keys_of = np.frombuffer(keys, np.uint64).reshape(len(digests) // 8, -1)
        shared = _shared_keys(keys_of, duplicates)
        found = _alike(texts, shared, threshold) if shared else {}
        for position, duplicate in duplicates.items():  # what the first of identical texts is like, the others are too
            if duplicate.original in found:
                duplicates[position] = found[duplicate.original]
        duplicates |= found
    return duplicates


def _keys(threshold: float, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The digests of texts, (texts,) uint64, and the keys of their bands; no bands where only identical texts count."""
    digests = np.array([_digest(text) for text in texts], np.uint64)
    return digests, band_keys(signatures(texts), threshold) if threshold < 1 else np.empty((len(texts), 0), np.uint64)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _identical(digests: np.ndarray) -> dict[int, Duplicate]:
    """The texts whose digest an earlier one has, with the first such."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    originals = first[inverse]
    again = np.flatnonzero(originals != np.arange(len(digests)))
    named = originals[again].tolist()
    likenesses = {original: Duplicate(original, 1.0, True) for original in named}  # one object for all that are alike
    return {position: likenesses[original] for position, original in zip(again.tolist(), named, strict=True)}


def _shared_keys(keys: np.ndarray, leave_out: Iterable[int]) -> dict[int, list[int]]:
    """{position: its keys that another text has in the same band}, of the texts that have one."""
    taking_part = np.ones(len(keys), bool)
    taking_part[list(leave_out)] = False
    positions = np.flatnonzero(taking_part)
    shared: dict[int, list[int]] = {}
    for band in keys.T:
        ordered = np.argsort(band[positions], kind="stable")
        values = band[positions][ordered]
        same = values[1:] == values[:-1]
        several = np.concatenate((same, [False])) | np.concatenate(([False], same))
        for position, key in zip(positions[ordered][several].tolist(), values[several].tolist(), strict=True):
            shared.setdefault(position, []).append(key)
    return shared


def _alike(texts: Callable[[], Iterable[str]], shared: dict[int, list[int]], threshold: float) -> dict[int, Duplicate]:
    """Of the texts at the positions in `shared`, read again, those that are like an earlier one which is kept."""
    kept: dict[int, list[int]] = {}  # {key: positions of kept texts that have it}
    sets: dict[int, np.ndarray] = {}  # the kept texts' shingles
    found: dict[int, Duplicate] = {}
    for position, text in _at(texts(), shared):
        hashes = shingle_hashes(text)
        earlier = sorted(set(chain.from_iterable(kept.get(key, ()) for key in shared[position])))
        for original in earlier[:MOST_COMPARED]:
            similarity = jaccard(hashes, sets[original])
            if similarity >= threshold:
                found[position] = Duplicate(original, similarity, False)
                break
        else:
            sets[position] = hashes
            for key in shared[position]:
                kept.setdefault(key, []).append(position)
    return found


def _at(texts: Iterable[str], positions: dict[int, list[int]]) -> Iterator[tuple[int, str]]:
    return ((position, text) for position, text in enumerate(texts) if position in positions)
