"""Positive pairs: two views of each sample, checked once and read from or written to one ``.npz`` file."""

import io
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symdyn_core.errors import InputError
from symdyn_core.files import write_atomically

Array = NDArray[np.float64]


def as_samples(name: str, values: ArrayLike) -> Array:
    """Return ``values`` as a finite float64 array of shape ``(n_samples, n_features)``.

    Args:
        name: what to call it in a message.
        values: array-like of numbers, shape ``(n_samples, n_features)``, both at least 1.

    Raises:
        InputError: not two-dimensional, empty, not real numbers, or not finite.

    >>> as_samples("x", [[1, 2]])
    array([[1., 2.]])
    """
    raw = np.asarray(values)
    if raw.dtype.kind not in "biuf":
        raise InputError(f"{name} must hold real numbers, got dtype {raw.dtype}")
    if raw.ndim != 2 or raw.size == 0:
        raise InputError(f"{name} must have shape (n_samples, n_features), got shape {raw.shape}")
    samples = raw.astype(np.float64)
    if bad := int(np.count_nonzero(~np.isfinite(samples))):
        raise InputError(f"{name} must be finite, got {bad} NaN or infinite values of {samples.size}")
    return samples


def as_pairs(x: ArrayLike, x_prime: ArrayLike) -> tuple[Array, Array]:
    """Return the two views as float64 arrays of one shape ``(n_pairs, n_features)``, ``n_pairs >= 2``.

    Row ``i`` of ``x`` and row ``i`` of ``x_prime`` are views of the same sample.

    Raises:
        InputError: an array that :func:`as_samples` refuses, different shapes, or fewer than two pairs.

    >>> as_pairs([[1.0], [2.0]], [[1.5], [2.5]])[1].ravel()
    array([1.5, 2.5])
    """
    first, second = as_samples("x", x), as_samples("x_prime", x_prime)
    if first.shape != second.shape:
        raise InputError(f"x and x_prime must have the same shape, got {first.shape} and {second.shape}")
    if len(first) < 2:
        raise InputError(f"at least 2 pairs are needed, got {len(first)}")
    return first, second


@dataclass(frozen=True)
class Pairs:
    """Two views of ``n_pairs`` samples as read from a file.

    ``x`` and ``x_prime`` have shape ``(n_pairs, n_features)``; ``sample_shape`` is the shape of one sample in
    the file, before it was flattened.
    """

    x: Array
    x_prime: Array
    sample_shape: tuple[int, ...]


def load_pairs(path: str | os.PathLike[str], x_key: str = "x", x_prime_key: str = "x_prime") -> Pairs:
    """Read the two views from the arrays ``x_key`` and ``x_prime_key`` of a NumPy ``.npz`` file.

    Samples of more than one axis (images) are flattened. Pickled objects are never loaded.

    Raises:
        InputError: no such file, not an ``.npz`` file, a missing key, or arrays that are no pairs.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            x, x_prime = _read_views(path, stream, x_key, x_prime_key)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if x.shape != x_prime.shape:
        raise InputError(f"{path}: both views must have the same shape, got {x.shape} and {x_prime.shape}")
    flat = (view.reshape(len(view), -1) for view in (x, x_prime))
    return Pairs(*as_pairs(*flat), sample_shape=x.shape[1:])


def save_pairs(path: str | os.PathLike[str], x: ArrayLike, x_prime: ArrayLike) -> Path:
    """Write two views to ``path`` as the arrays ``x`` and ``x_prime`` of an ``.npz`` file.

    Raises:
        InputError: arrays that are no pairs, or a place that cannot be written to.
    """
    first, second = as_pairs(x, x_prime)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=first, x_prime=second)
    return write_atomically(path, buffer.getvalue())


def _read_views(path: Path, stream: BinaryIO, *keys: str) -> list[NDArray[Any]]:
    try:
        archive = np.load(stream, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not an .npz file that NumPy can read") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise InputError(f"{path} must be an .npz file with two arrays, got a single array (.npy)")
    with archive:
        return [_read_view(path, archive, key) for key in keys]


def _read_view(path: Path, archive: "np.lib.npyio.NpzFile", key: str) -> NDArray[Any]:
    if key not in archive.files:
        raise InputError(f"{path} has no array {key!r}; arrays found: {', '.join(archive.files) or 'none'}")
    try:
        view = archive[key]
    except MemoryError as error:
        raise InputError(f"{path}: cannot read array {key!r}: it does not fit into memory") from error
    except (ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        reason = "it holds pickled objects" if "allow_pickle" in str(error) else "the file is damaged"
        raise InputError(f"{path}: cannot read array {key!r}: {reason}") from error
    if not isinstance(view, np.ndarray) or view.ndim < 2 or view.size == 0:
        raise InputError(f"{path}: array {key!r} must have shape (n_pairs, ...), got {np.shape(view)}")
    return view
