import numpy as np
import pytest
from sklearn.base import clone

from symdyn_core.errors import InputError
from symdyn_ssl.augment import digit_pairs
from symdyn_ssl.kernel import KernelSSL
from symdyn_ssl.stepwise import StepwiseTheory


@pytest.fixture(scope="module")
def pairs():
    return digit_pairs(120, seed=1)


@pytest.mark.parametrize("center", [True, False])
def test_linear_kernel_is_the_linear_theory(pairs, center):
    x, x_prime = pairs
    model = KernelSSL("linear", 5, center=center).fit(x, x_prime)
    theory = StepwiseTheory.from_pairs(x, x_prime, 5, center=center)
    np.testing.assert_allclose(model.gamma_, theory.gamma, rtol=1e-8)
    new = digit_pairs(50, seed=2)[0]
    ours, expected = model.transform(new), theory.embed(new)
    np.testing.assert_allclose(ours * np.sign((ours * expected).sum(axis=0)), expected, rtol=1e-5, atol=1e-6)


def test_block_form_has_the_same_spectrum(pairs):
    x, x_prime = (view[:40] for view in pairs)
    n = len(x)
    stacked = np.vstack([x, x_prime])
    gram = np.exp(-0.05 * ((stacked[:, None] - stacked[None]) ** 2).sum(axis=-1))
    values, vectors = np.linalg.eigh(gram)
    inverse_root = vectors @ np.diag(values**-0.5) @ vectors.T
    top, bottom = gram[:n], gram[n:]
    # The rows of each block: kernel with the other view of pair i, times kernel with the view itself.
    z = np.vstack([top[:, n:] @ top, bottom[:, n:] @ top]) / (2 * n)
    spectrum = np.linalg.eigvalsh(inverse_root @ (z + z.T) @ inverse_root)[::-1]
    model = KernelSSL("rbf", 10, kernel_params={"gamma": 0.05}, center=False).fit(x, x_prime)
    np.testing.assert_allclose(model.gamma_, spectrum[:10], rtol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "parameters"), [("rbf", {"gamma": 0.02}), ("poly", {"degree": 2}), ("laplacian", None)]
)
def test_embedding_of_the_training_views_has_identity_covariance(pairs, kernel, parameters):
    model = KernelSSL(kernel, 6, kernel_params=parameters).fit(*pairs)
    z, z_prime = (model.transform(view) for view in pairs)
    np.testing.assert_allclose(z.T @ z_prime + z_prime.T @ z, 2 * len(z) * np.eye(6), atol=2e-5 * len(z))


def test_quadratic_kernel_is_the_linear_theory_on_its_features(pairs):
    x, x_prime = (view[:, 18:22] for view in pairs)

    def features(view):
        return np.einsum("ni,nj->nij", view, view).reshape(len(view), -1)

    parameters = {"degree": 2, "gamma": 1.0, "coef0": 0.0}
    model = KernelSSL("poly", 3, kernel_params=parameters).fit(x, x_prime)
    theory = StepwiseTheory.from_pairs(features(x), features(x_prime), 3)
    np.testing.assert_allclose(model.gamma_, theory.gamma, rtol=1e-8)


def test_steps_from_initial_embeddings(pairs):
    x, x_prime = pairs
    weights = np.random.default_rng(0).normal(0, 1e-5, (4, 64))
    theory = StepwiseTheory.from_pairs(x, x_prime, 4)
    expected = theory.competing_steps(weights)
    steps = KernelSSL("linear", 4).fit(x, x_prime).competing_steps(x @ weights.T, x_prime @ weights.T)
    np.testing.assert_allclose(steps.times, expected.times, rtol=1e-6)
    encoder = steps.encoder @ (np.vstack([x, x_prime]) - theory.mean)
    np.testing.assert_allclose(encoder.T @ encoder, expected.encoder.T @ expected.encoder, atol=1e-3)


def test_is_a_scikit_learn_estimator(pairs):
    model = KernelSSL("rbf", 3, kernel_params={"gamma": 0.1})
    copy = clone(model).set_params(dim=2)
    assert copy.get_params() == {"kernel": "rbf", "dim": 2, "kernel_params": {"gamma": 0.1}, "center": True}
    assert copy.fit(*pairs).transform(pairs[0]).shape == (120, 2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (KernelSSL("no such kernel"), "kernel 'no such kernel'"),
        (KernelSSL("rbf", kernel_params={"sigma": 1}), "sigma"),
        (
            KernelSSL("linear", dim=64),
            r"dim must be in \[1, \d+\], the number of positive eigenvalues, got 64",
        ),
        (KernelSSL("linear", dim=0), "got 0"),
        (KernelSSL(lambda a, b: -a @ b, center=False), "must be positive semi-definite"),
    ],
)
def test_bad_input(pairs, model, message):
    with pytest.raises(InputError, match=message):
        model.fit(*pairs)


def test_wrong_number_of_features(pairs):
    model = KernelSSL("linear", 2).fit(*pairs)
    with pytest.raises(InputError, match="x must have 64 features, got 3"):
        model.transform(np.ones((2, 3)))
    with pytest.raises(InputError, match=r"shape \(n_pairs, dim\)=\(120, 2\), got \(120, 3\)"):
        model.competing_steps(np.ones((120, 3)), np.ones((120, 3)))
