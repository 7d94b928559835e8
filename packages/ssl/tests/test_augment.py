import numpy as np
import pytest

from symdyn_core.errors import InputError
from symdyn_ssl.augment import digit_pairs, random_view


def test_rolls_each_image_by_itself_like_numpy():
    images = np.random.default_rng(0).normal(size=(20, 5, 4))
    view = random_view(images, np.random.default_rng(1), shift=2, gain=0.0, noise=0.0)
    shifts = []
    for image, rolled in zip(images, view, strict=True):
        matches = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-1, 3)  # a width of 4 has only four different rolls
            if np.array_equal(np.roll(image, (down, right), (0, 1)), rolled)
        ]
        assert len(matches) == 1
        shifts += matches
    assert len(set(shifts)) > 5


def test_gain_and_noise_have_the_stated_size():
    images = np.ones((4000, 2, 2))
    bright = random_view(images, np.random.default_rng(0), gain=0.2, noise=0.0)
    assert bright.min() >= 0.8
    assert bright.max() <= 1.2
    assert np.ptp(bright, axis=(1, 2)).max() == 0
    noisy = random_view(images, np.random.default_rng(0), gain=0.0, noise=0.05)
    assert noisy.std() == pytest.approx(0.05, rel=0.03)


def test_the_seed_determines_the_pairs():
    np.testing.assert_array_equal(digit_pairs(20, 1), digit_pairs(20, 1))
    assert not np.array_equal(digit_pairs(20, 1), digit_pairs(20, 2))
    x, x_prime = digit_pairs(20, 1)
    assert not np.array_equal(x, x_prime)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": -1}, r"shift must be in \[0, 8\], the size of the images, got -1"),
        ({"shift": 10**20}, r"shift must be in \[0, 8\]"),
        ({"gain": 1.0}, r"gain must be in \[0, 1\), got 1.0"),
        ({"noise": np.inf}, "noise must be finite"),
        ({"n_pairs": 1}, r"n_pairs must be in \[2, 1797\], got 1"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        digit_pairs(**{"n_pairs": 5, **options})


def test_refuses_what_is_not_a_stack_of_images():
    with pytest.raises(InputError, match=r"images must have shape \(n, height, width\), got \(5, 4\)"):
        random_view(np.ones((5, 4)), np.random.default_rng(0))
