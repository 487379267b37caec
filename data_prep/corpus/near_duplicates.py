"""Exact and near-duplicates among the texts of a corpus or data set.

A text is the set of its shingles, which are runs of five units. A unit is a word; punctuation marks, and characters of
scripts without blanks between words, are units by themselves. Two texts are near-duplicates if the Jaccard similarity
of their sets reaches a threshold (Broder 1997, On the resemblance and containment of documents). MinHash signatures
split into bands find the candidate pairs (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4), and
each of these is then compared exactly. Case and the kind of whitespace make no difference.

The texts are read once, and again if any bands agree. Memory: about 200 bytes per text, and the shingles of the kept
texts that share a band with another.
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

BATCH_CHARACTERS = 1 << 18  # sent to a worker at once
SHINGLE = 5  # units; what Lee et al. 2022 (arXiv:2107.06499, appendix A) use for documents
NUM_PERM = 128
RECALL = 0.99  # a pair at the threshold shares a band with at least this probability
MOST_COMPARED = 100  # a text is compared with at most this many earlier ones: templates would make it quadratic
BLANK, LETTER, SINGLE = 0, 1, 2
ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: multiplication by it spreads neighbours apart


class Duplicate(NamedTuple):
    """The earlier text, itself no duplicate, that a text duplicates."""

    original: int  # its position, from 0
    similarity: float  # Jaccard, 0 to 1
    identical: bool  # every character
    copy_of: int | None = None  # an earlier text that is the same in every character, and itself a near-duplicate


@cache
def _kinds() -> np.ndarray:
    """The kind of each code point: a blank, part of a word, or a unit by itself; (TABLE_SIZE,) uint8."""
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
    """Hash uint64 values over all 64 bits (the finalizer of SplitMix64, Steele 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shingle_hashes(text: str) -> np.ndarray:
    """The text's set of shingles as sorted 8-byte hashes, (shingles,) uint64.

    A text with fewer units than a shingle is one shingle; a text of whitespace alone has none.
    """
    codes = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds()[np.minimum(codes, TABLE_SIZE - 1)]
    written = kinds != BLANK
    if not written.any():
        return np.empty(0, np.uint64)
    starts_word = (kinds == LETTER) & np.concatenate(([True], kinds[:-1] != LETTER))
    starts = np.flatnonzero(starts_word | (kinds == SINGLE))
    # The hash of a unit is a sum over its characters, each mixed with its place; a blank after it adds nothing.
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
    """Odd factors and summands of `num_perm` permutations of the 32-bit numbers, the same in every process."""
    factors, summands = np.random.default_rng(0).integers(0, 2**32, (2, num_perm), dtype=np.uint32)
    return factors | np.uint32(1), summands


def signature(hashes: np.ndarray, num_perm: int = NUM_PERM) -> np.ndarray:
    """MinHash of a set of shingle hashes: the smallest value under each permutation, (num_perm,) uint32.

    The fraction of places where two signatures agree estimates the Jaccard similarity of the sets, with a standard
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
    """The most rows per band with which a pair at the threshold still shares a band with probability `RECALL`.

    More rows give fewer false candidates.
    """
    rows = 1
    while 1 - (1 - threshold ** (rows + 1)) ** (num_perm // (rows + 1)) >= RECALL and rows < num_perm:
        rows += 1
    return rows


def band_keys(signed: np.ndarray, threshold: float) -> np.ndarray:
    """An 8-byte key for each band of the signatures (texts, num_perm), as (texts, bands) uint64.

    Texts with a similarity at or above the threshold share a key in some band with probability `RECALL` or more.
    """
    rows = rows_per_band(threshold, signed.shape[1])
    bands = signed.shape[1] // rows
    cut = signed[:, : bands * rows].reshape(len(signed), bands, rows).astype(np.uint64)
    keys = np.broadcast_to(np.arange(bands, dtype=np.uint64), cut.shape[:2])
    for row in range(rows):
        keys = _mixed(keys * ODD + cut[:, :, row])
    return keys


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """The Jaccard similarity of two sets of shingle hashes; 1 for two empty sets."""
    common = len(np.intersect1d(left, right, assume_unique=True))
    return common / union if (union := len(left) + len(right) - common) else 1.0


def near_duplicates(
    texts: Callable[[], Iterable[str]], threshold: float = 0.8, num_workers: int = 1
) -> dict[int, Duplicate]:
    """{position of a text: the earlier text that it duplicates}, for all duplicates.

    `texts()` has to give the same texts each time it is called. Identical texts are always found (by 8-byte hashes), a
    pair at the threshold with probability `RECALL`, and a more similar pair with a higher one. If a text duplicates
    several, the first is named. With a threshold of 1 only identical texts count, and one reading is enough. The
    signatures are computed by `num_workers` processes, on whose number the result does not depend.
    """
    batches = batched_by_length(texts(), BATCH_CHARACTERS)
    # Both grow in place: arrays concatenated at the end would be in memory twice.
    digests, keys = bytearray(), bytearray()
    for _, found_keys in in_order(partial(text_keys, threshold), batches, num_workers):
        for grown, values in zip((digests, keys), found_keys, strict=True):
            grown += values.tobytes()
    if not digests:
        return {}
    keys_of = np.frombuffer(keys, np.uint64).reshape(len(digests) // 8, -1)
    return duplicates_of(np.frombuffer(digests, np.uint64), keys_of, texts, threshold)


def duplicates_of(
    digests: np.ndarray, keys: np.ndarray, texts: Callable[[], Iterable[str]], threshold: float
) -> dict[int, Duplicate]:
    """`near_duplicates` of texts whose digests (texts,) and band keys (texts, bands) `text_keys` has found; the texts are
    read once, if any bands agree."""
    duplicates = _identical(digests)
    if threshold < 1:
        shared = _shared_keys(keys, duplicates)
        found = _alike(texts, shared, threshold) if shared else {}
        for position, duplicate in duplicates.items():  # copies of a near-duplicate are near-duplicates too
            if duplicate.original in found:
                duplicates[position] = found[duplicate.original]._replace(copy_of=duplicate.original)
        duplicates |= found
    return duplicates


def text_keys(threshold: float, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The digests of texts, (texts,) uint64, and their band keys (no bands if only identical texts count)."""
    digests = np.array([_digest(text) for text in texts], np.uint64)
    return digests, band_keys(signatures(texts), threshold) if threshold < 1 else np.empty((len(texts), 0), np.uint64)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _identical(digests: np.ndarray) -> dict[int, Duplicate]:
    """The texts with the digest of an earlier one, each with the first such."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    originals = first[inverse]
    again = np.flatnonzero(originals != np.arange(len(digests)))
    named = originals[again].tolist()
    likenesses = {original: Duplicate(original, 1.0, True) for original in named}  # one object for all copies
    return {position: likenesses[original] for position, original in zip(again.tolist(), named, strict=True)}


def _shared_keys(keys: np.ndarray, leave_out: Iterable[int]) -> dict[int, list[int]]:
    """{position: those of its keys that another text has in the same band}, of the texts that have any."""
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
    """The near-duplicates of a kept earlier text, among the texts at the positions in `shared`, which are read again."""
    kept: dict[int, list[int]] = {}  # {key: positions of kept texts that have it}
    sets: dict[int, np.ndarray] = {}  # the shingles of kept texts
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
