"""Rows with the same bytes or the same pixels: classes by the full 256 bits of their hashes."""

from __future__ import annotations

from binascii import unhexlify

import numpy as np
import pyarrow as pa

from curation.duplicates.groups import Groups

_CHUNK = 1 << 14
_NO_CAPITALS = np.uint64(0x2020202020202020)  # this bit is set in digits and small letters, not in capitals


def digests(hashes: np.ndarray | pa.Array) -> np.ndarray:
    """Hexadecimal sha256 hashes as numbers.

    Args:
        hashes: (N,) strings or bytes: 64 lower-case hexadecimal digits each. Others are numbered instead, which keeps
            them apart but says nothing outside this array.

    Returns:
        (N, 4) uint64: equal exactly where the hashes are.
    """
    if isinstance(hashes, np.ndarray) and hashes.dtype == np.dtype("S64"):
        text = np.ascontiguousarray(hashes).view(np.uint8)
    else:
        strings = pa.array(hashes).cast(pa.large_binary())
        strings = strings.combine_chunks() if isinstance(strings, pa.ChunkedArray) else strings
        ends = np.frombuffer(strings.buffers()[1], np.int64)[strings.offset : strings.offset + len(strings) + 1]
        if not (np.diff(ends) == 64).all():
            return _numbered(hashes)
        text = np.frombuffer(strings.buffers()[2] or b"", np.uint8)[ends[0] : ends[-1]]
    words = np.empty((len(hashes), 4), np.uint64)
    for start in range(0, len(hashes), _CHUNK):
        part = text[start * 64 : (start + _CHUNK) * 64].tobytes()
        try:
            decoded = unhexlify(part)
        except ValueError:
            return _numbered(hashes)
        if np.bitwise_and.reduce(np.frombuffer(part, np.uint64)) & _NO_CAPITALS != _NO_CAPITALS:
            return _numbered(hashes)
        words[start : start + _CHUNK] = np.frombuffer(decoded, ">u8").reshape(-1, 4)
    return words


def _numbered(hashes: np.ndarray | pa.Array) -> np.ndarray:
    words = np.zeros((len(hashes), 4), np.uint64)
    encoded = pa.chunked_array([pa.array(hashes)]).dictionary_encode().combine_chunks()
    words[:, 0] = (encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded).indices
    return words


def first_equal(words: np.ndarray) -> np.ndarray:
    """For every row the first row that is equal to it: itself where none before it is.

    Args:
        words: (N, W) uint64. Sorted by the first word; all words decide.

    Returns:
        (N,) int64 row numbers.
    """
    groups = Groups.of(np.ascontiguousarray(words[:, 0]))
    if len(groups.values) == len(words):
        return np.arange(len(words))
    first = groups.spread(groups.first)
    later = np.flatnonzero(first != np.arange(len(words)))
    other = later[(words[later] != words[first[later]]).any(axis=1)]
    if len(other):  # another hash with the same first 64 bits
        rows = np.flatnonzero(np.isin(first, first[other]))
        rows = rows[np.lexsort((rows, *words[rows].T))]
        new = np.append(True, (words[rows[1:]] != words[rows[:-1]]).any(axis=1))
        first[rows] = rows[new][np.cumsum(new) - 1]
    return first
