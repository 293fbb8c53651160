"""BM25 as Lucene 8 computes it: k1 0.9, b 0.4, single precision, document lengths rounded to one byte.

N documents have a term at least; L is a document's number of terms, avg their mean. A term with document frequency df
that stands n times in the query and tf times in the document adds w − w / (1 + tf · i), where w = n · idf,
idf = ln(1 + (N − df + 0.5) / (df + 0.5)) and i = 1 / (k1 · (1 − b + b · L / avg)), all in single precision. The parts
of a score are added in double precision, in which their sum has no rounding error whatever their order, and the sum is
rounded to single precision.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

K1 = np.float32(0.9)
B = np.float32(0.4)
_EXACT_LENGTHS = 24


def idf(n_documents: int, document_frequency: int) -> np.float32:
    """Inverse document frequency of a term."""
    return np.float32(math.log(1 + (n_documents - document_frequency + 0.5) / (document_frequency + 0.5)))


def length_code(length: int) -> int:
    """The byte that stands for a document length: exact below 40, then four significant bits, rounded down."""
    above = length - _EXACT_LENGTHS
    if above < 8:
        return length
    shift = above.bit_length() - 4
    return _EXACT_LENGTHS + ((shift + 1) << 3) + (above >> shift & 7)


def code_length(code: int) -> int:
    """The shortest document length with a code."""
    above = code - _EXACT_LENGTHS
    if above < 8:
        return code
    shift = (above >> 3) - 1
    return _EXACT_LENGTHS + ((above & 7 | 8) << shift)


CODE_LENGTHS = np.array([code_length(code) for code in range(256)], dtype=np.int64)
"""(256,) int64: the shortest document length with each code."""


def length_codes(lengths: NDArray[np.int32]) -> NDArray[np.uint8]:
    """`length_code` of each length; same shape, uint8."""
    return (np.searchsorted(CODE_LENGTHS, lengths, side="right") - 1).astype(np.uint8)


def inverse_norms(n_documents: int, n_terms: int) -> NDArray[np.float32]:
    """The factor i for each length code.

    Args:
        n_documents: documents that have a term.
        n_terms: their terms in all.

    Returns:
        (256,) float32
    """
    average = np.float32(n_terms / n_documents) if n_documents else np.float32(1)
    one = np.float32(1)
    inverse: NDArray[np.float32] = one / (K1 * ((one - B) + B * CODE_LENGTHS.astype(np.float32) / average))
    return inverse


def parts(weight: np.float32, products: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a term adds to the scores of documents.

    Args:
        weight: n · idf.
        products: (n,) float32, tf · i of each document.

    Returns:
        (n,) float32, positive where the document has the term and 0 where tf is 0
    """
    return weight - weight / (np.float32(1) + products)
