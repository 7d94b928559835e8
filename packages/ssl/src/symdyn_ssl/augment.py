"""Random views of small images: roll, gain, noise; and positive pairs made from scikit-learn's digits."""

import numpy as np
from numpy.typing import NDArray

from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator

Array = NDArray[np.float64]


def random_view(
    images: Array, generator: np.random.Generator, *, shift: int = 1, gain: float = 0.2, noise: float = 0.05
) -> Array:
    """Return one random view of each image: rolled, made brighter or darker, with noise added.

    Each image by itself is rolled by ``-shift..shift`` pixels along both axes (pixels that leave on one side
    come back on the other), multiplied by one number from ``[1 - gain, 1 + gain]``, and gets independent
    Gaussian noise on every pixel.

    Args:
        images: shape ``(n, height, width)``.
        generator: where the randomness comes from.
        shift: largest roll in pixels, in [0, max(height, width)].
        gain: largest relative change of brightness, in [0, 1).
        noise: standard deviation of the noise, in the images' unit, at least 0.

    Returns:
        Views of the shape of ``images``.

    Raises:
        InputError: images of another shape, or a strength out of range.

    >>> generator = np.random.default_rng(0)
    >>> view = random_view(np.ones((1, 2, 2)), generator, gain=0.0, noise=0.0)
    >>> view.tolist()
    [[[1.0, 1.0], [1.0, 1.0]]]
    """
    if images.ndim != 3 or images.size == 0:
        raise InputError(f"images must have shape (n, height, width), got {images.shape}")
    if not 0 <= shift <= max(images.shape[1:]):
        raise InputError(
            f"shift must be in [0, {max(images.shape[1:])}], the size of the images, got {shift}"
        )
    if not 0 <= gain < 1:
        raise InputError(f"gain must be in [0, 1), got {gain}")
    if not 0 <= noise < np.inf:
        raise InputError(f"noise must be finite and at least 0, got {noise}")
    n, height, width = images.shape
    down, right = generator.integers(-shift, shift + 1, (2, n))
    rows = (np.arange(height) - down[:, None]) % height
    columns = (np.arange(width) - right[:, None]) % width
    rolled = images[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    brightness = generator.uniform(1 - gain, 1 + gain, (n, 1, 1))
    view: Array = rolled * brightness + noise * generator.normal(size=images.shape)
    return view


def digit_pairs(
    n_pairs: int = 500, seed: int = 0, *, shift: int = 1, gain: float = 0.2, noise: float = 0.05
) -> tuple[Array, Array]:
    """Return two random views of ``n_pairs`` different handwritten digits (8x8, scaled to [0, 1]).

    Args:
        n_pairs: images drawn without replacement from scikit-learn's 1797.
        seed: of the choice of images and of both views.
        shift: see :func:`random_view`.
        gain: see :func:`random_view`.
        noise: see :func:`random_view`.

    Returns:
        ``(x, x_prime)``, each of shape ``(n_pairs, 64)``.

    Raises:
        InputError: ``n_pairs`` out of range, or a strength out of range.

    >>> x, x_prime = digit_pairs(10)
    >>> x.shape == x_prime.shape == (10, 64)
    True
    """
    from sklearn.datasets import load_digits

    images = load_digits().images / 16
    if not 2 <= n_pairs <= len(images):
        raise InputError(f"n_pairs must be in [2, {len(images)}], got {n_pairs}")
    chosen = images[numpy_generator(seed, "images").choice(len(images), n_pairs, replace=False)]
    views = [
        random_view(chosen, numpy_generator(seed, name), shift=shift, gain=gain, noise=noise).reshape(
            n_pairs, -1
        )
        for name in ("view", "other view")
    ]
    return views[0], views[1]
