import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from symdyn_core.errors import InputError
from symdyn_ssl.augment import digit_pairs
from symdyn_ssl.simulate import simulate_linear_ssl
from symdyn_ssl.steps import measure_steps
from symdyn_ssl.stepwise import (
    StepwiseTheory,
    contrastive_covariance,
    largest_learning_rate,
    optimiser_steps,
)


def random_pairs(seed, n=40, features=6):
    """Pairs that share a signal of decreasing strength."""
    generator = np.random.default_rng(seed)
    signal = generator.normal(size=(n, features)) * np.geomspace(1.5, 0.5, features)
    noise = generator.normal(size=(2, n, features)) * 0.3
    return signal + noise[0], signal + noise[1]


@pytest.fixture(scope="module")
def digits():
    return digit_pairs(300, seed=3)


@pytest.fixture(scope="module")
def trained(digits):
    """One training on digits from small weights: the weights it started from, and its record."""
    weights = np.random.default_rng(5).normal(0, 1e-4, (6, 64))
    run = simulate_linear_ssl(*digits, 6, learning_rate=0.02, weights0=weights, tolerance=1e-6)
    assert run.converged
    return weights, run


class TestContrastiveCovariance:
    def test_is_the_average_over_pairs_and_both_orders(self):
        x, x_prime = random_pairs(0)
        naive = sum(
            np.outer(a, b) + np.outer(b, a) for a, b in zip(x, x_prime, strict=True)
        ) / (2 * len(x))  # fmt: skip
        np.testing.assert_allclose(contrastive_covariance(x, x_prime), naive, rtol=1e-12, atol=1e-15)

    def test_ignores_noise_that_the_views_do_not_share(self):
        generator = np.random.default_rng(1)
        x, x_prime = generator.normal(size=(2, 200_000, 2))
        # The ordinary covariance would be the identity; the statistical error is 1 / sqrt(n) = 0.002.
        assert np.abs(contrastive_covariance(x, x_prime)).max() < 0.01

    @pytest.mark.parametrize(
        ("x", "x_prime", "message"),
        [
            (np.ones((3, 2)), np.ones((3, 3)), r"same shape, got \(3, 2\) and \(3, 3\)"),
            (np.ones((1, 2)), np.ones((1, 2)), "at least 2 pairs are needed, got 1"),
            (np.ones(3), np.ones(3), r"x must have shape \(n_samples, n_features\), got shape \(3,\)"),
            (np.ones((3, 0)), np.ones((3, 0)), "x must have shape"),
            (np.ones((3, 2)), [[1, np.nan], [np.inf, 0], [0, 0]], "got 2 NaN or infinite values of 6"),
            (np.ones((3, 2)), np.full((3, 2), "a"), "x_prime must hold real numbers"),
            (np.ones((3, 2)) * 1j, np.ones((3, 2)), "x must hold real numbers, got dtype complex128"),
        ],
    )
    def test_refuses_what_is_no_pair_of_views(self, x, x_prime, message):
        with pytest.raises(InputError, match=message):
            contrastive_covariance(x, x_prime)


class TestGradient:
    def test_of_the_loss_is_four_c_minus_one_w_gamma(self):
        x, x_prime = random_pairs(2)
        weights = torch.tensor(np.random.default_rng(3).normal(size=(4, 6)), requires_grad=True)
        z, z_prime = torch.tensor(x) @ weights.T, torch.tensor(x_prime) @ weights.T
        c = (z.T @ z_prime + z_prime.T @ z) / (2 * len(x))
        (c - torch.eye(4)).square().sum().backward()
        w, gamma = weights.detach().numpy(), contrastive_covariance(x, x_prime)
        expected = 4 * (w @ gamma @ w.T - np.eye(4)) @ w @ gamma
        np.testing.assert_allclose(weights.grad.numpy(), expected, rtol=1e-10, atol=1e-10)

    def test_simulation_takes_that_step(self):
        x, x_prime = random_pairs(2)
        w = np.random.default_rng(3).normal(0, 0.1, size=(4, 6))
        run = simulate_linear_ssl(x, x_prime, 4, learning_rate=0.1, weights0=w, max_steps=1, center=False)
        gamma = contrastive_covariance(x, x_prime)
        np.testing.assert_allclose(
            run.weights, w - 0.4 * (w @ gamma @ w.T - np.eye(4)) @ w @ gamma, rtol=1e-12
        )


class TestAlignedSolution:
    """The closed form is exact where the initial weights are aligned with the directions."""

    @pytest.mark.parametrize("scale", [1e-3, 0.3, 2.0])
    def test_solves_the_gradient_flow(self, scale):
        theory = StepwiseTheory.from_pairs(*random_pairs(4), 3)
        rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
        weights = scale * rotation @ np.diag([1.0, 0.7, 1.3]) @ theory.directions
        x, x_prime = (view - theory.mean for view in random_pairs(4))
        gamma = contrastive_covariance(x, x_prime)

        def flow(_, flat):
            w = flat.reshape(3, 6)
            return (-4 * (w @ gamma @ w.T - np.eye(3)) @ w @ gamma).ravel()

        times = np.linspace(0, 12, 25)
        solved = solve_ivp(
            flow, (0, 12), weights.ravel(), t_eval=times, rtol=1e-10, atol=1e-13, method="LSODA"
        )
        paths = [np.linalg.eigvalsh(w @ gamma @ w.T) for w in solved.y.T.reshape(-1, 3, 6)]
        predicted = theory.eigenvalues(times, weights0=weights)
        np.testing.assert_allclose(np.sort(predicted, axis=1), paths, atol=1e-6)
        np.testing.assert_allclose(
            theory.loss(times, weights0=weights), ((1 - np.array(paths)) ** 2).sum(1), atol=2e-5
        )

    def test_passes_one_half_at_the_step_time_and_ten_to_ninety_in_the_width(self):
        theory = StepwiseTheory.from_pairs(*random_pairs(5), 4)
        times, widths = theory.step_times(init_std=1e-4), theory.widths
        at = np.array([np.diag(theory.eigenvalues(t, init_std=1e-4)) for t in (times, times + widths / 2)])
        np.testing.assert_allclose(at[0], 0.5, rtol=1e-9)
        np.testing.assert_allclose(at[1], 0.9, rtol=1e-9)

    def test_a_start_too_small_to_be_squared_still_has_its_steps(self):
        theory = StepwiseTheory.from_pairs(*random_pairs(5), 4)
        # Each factor of ten delays every step by log(10) / (4 gamma).
        near, far = theory.step_times(init_std=1e-100), theory.step_times(init_std=1e-300)
        np.testing.assert_allclose(far - near, 200 * np.log(10) / (4 * theory.gamma), rtol=1e-12)
        np.testing.assert_allclose(np.diag(theory.eigenvalues(far, init_std=1e-300)), 0.5, rtol=1e-9)

    def test_both_forms_of_the_step_time_agree_and_the_mixed_one_does_not(self):
        theory = StepwiseTheory.from_pairs(*random_pairs(5), 4)
        s = theory.initial_scales(init_std=1e-6)
        times = theory.step_times(init_std=1e-6)
        np.testing.assert_allclose(times, -np.log(np.sqrt(theory.gamma) * s) / (4 * theory.gamma), rtol=1e-9)
        mixed = -np.log(np.sqrt(theory.gamma) * s) / (8 * theory.gamma)
        np.testing.assert_allclose(times / mixed, 2, rtol=1e-9)

    def test_competition_agrees_with_the_closed_form(self):
        theory = StepwiseTheory.from_pairs(*random_pairs(6), 4)
        weights = 1e-5 * theory.directions
        steps = theory.competing_steps(weights)
        np.testing.assert_allclose(steps.times, theory.step_times(weights0=weights), rtol=1e-8)
        expected = (theory.directions.T / theory.gamma) @ theory.directions
        np.testing.assert_allclose(steps.encoder.T @ steps.encoder, expected, rtol=1e-6, atol=1e-8)


class TestInvariance:
    @settings(derandomize=True, deadline=None, max_examples=25)
    @given(seed=st.integers(0, 10_000), dim=st.integers(1, 6), n=st.integers(2, 20))
    def test_under_an_orthogonal_change_of_features_and_of_outputs(self, seed, dim, n):
        x, x_prime = random_pairs(seed, n)
        generator = np.random.default_rng(seed)
        features = np.linalg.qr(generator.normal(size=(6, 6)))[0]
        outputs = np.linalg.qr(generator.normal(size=(dim, dim)))[0]
        weights = generator.normal(0, 1e-3, (dim, 6))
        theory = StepwiseTheory.from_pairs(x, x_prime, dim)
        turned = StepwiseTheory.from_pairs(x @ features, x_prime @ features, dim)
        np.testing.assert_allclose(turned.spectrum, theory.spectrum, rtol=1e-7, atol=1e-12)
        other = outputs @ weights @ features
        np.testing.assert_allclose(
            turned.competing_steps(other).times, theory.competing_steps(weights).times, rtol=1e-5
        )
        z, z_turned = theory.embed(x), turned.embed(x @ features)
        np.testing.assert_allclose(np.abs(z_turned), np.abs(z), rtol=1e-5, atol=1e-7)

    @settings(derandomize=True, deadline=None, max_examples=25)
    @given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10))
    def test_scaling_the_data_only_changes_the_clock(self, seed, scale):
        x, x_prime = random_pairs(seed)
        theory = StepwiseTheory.from_pairs(x, x_prime, 3)
        scaled = StepwiseTheory.from_pairs(scale * x, scale * x_prime, 3)
        weights = np.random.default_rng(seed).normal(0, 1e-4, (3, 6))
        np.testing.assert_allclose(scaled.gamma, scale**2 * theory.gamma, rtol=1e-9)
        np.testing.assert_allclose(
            scaled.step_times(weights0=weights / scale) * scale**2,
            theory.step_times(weights0=weights),
            rtol=1e-8,
        )

    def test_swapping_the_views_changes_nothing(self):
        x, x_prime = random_pairs(7)
        first, second = StepwiseTheory.from_pairs(x, x_prime, 3), StepwiseTheory.from_pairs(x_prime, x, 3)
        np.testing.assert_allclose(first.gamma, second.gamma, rtol=1e-12)

    def test_more_features_than_samples_goes_another_way_to_the_same_answer(self):
        x, x_prime = random_pairs(8, n=4, features=30)
        theory = StepwiseTheory.from_pairs(x, x_prime, 3)
        values, vectors = np.linalg.eigh(contrastive_covariance(x - theory.mean, x_prime - theory.mean))
        np.testing.assert_allclose(theory.gamma, values[::-1][:3], rtol=1e-10)
        np.testing.assert_allclose(np.abs(theory.directions @ vectors[:, ::-1][:, :3]), np.eye(3), atol=1e-8)


class TestTraining:
    """Against gradient descent on the loss itself, on digits."""

    def test_step_times(self, digits, trained):
        weights, run = trained
        theory = StepwiseTheory.from_pairs(*digits, 6)
        measured = measure_steps(run.steps * 0.02, run.eigenvalues).times
        competing = theory.competing_steps(weights).times
        # Finite steps: later by 2 gamma eta = 1.1 % for the first direction, less for the others.
        np.testing.assert_allclose(measured, competing, rtol=0.012)
        assert (measured > competing).all()
        closed = theory.step_times(weights0=weights)
        np.testing.assert_allclose(measured[:4], closed[:4], rtol=0.012)
        # gamma = 0.084, 0.076, 0.062 for the next three: here directions compete.
        assert np.abs(measured[4:] / closed[4:] - 1).max() > 0.05

    def test_growth_per_finite_step_explains_the_rest(self, digits, trained):
        weights, run = trained
        theory = StepwiseTheory.from_pairs(*digits, 6)
        times = theory.competing_steps(weights).times
        steps = optimiser_steps(times, learning_rate=0.02, gamma=theory.gamma)
        np.testing.assert_allclose(measure_steps(run.steps, run.eigenvalues).times, steps, rtol=0.003)

    def test_final_encoder_is_the_mixture_that_competition_ends_with(self, digits, trained):
        weights, run = trained
        theory = StepwiseTheory.from_pairs(*digits, 6)
        metric = run.weights.T @ run.weights  # the encoder up to a rotation of the outputs

        def error(encoder):
            return np.linalg.norm(metric - encoder.T @ encoder) / np.linalg.norm(metric)

        assert error(theory.competing_steps(weights).encoder) < 0.05
        assert error(theory.directions / np.sqrt(theory.gamma)[:, None]) > 0.15

    def test_staircase_rests_at_whole_numbers(self):
        # Well separated directions: gamma = 1, 0.3, 0.08.
        x = np.kron(np.diag(np.sqrt([3.0, 0.9, 0.24])), [[1], [-1]])
        theory = StepwiseTheory.from_pairs(x, x, 3)
        np.testing.assert_allclose(theory.gamma, [1.0, 0.3, 0.08], rtol=1e-12)
        run = simulate_linear_ssl(x, x, 3, learning_rate=0.02, init_std=1e-5, tolerance=1e-6)
        times = measure_steps(run.steps, run.eigenvalues).times
        between = np.interp((times[:-1] + times[1:]) / 2, run.steps, run.loss)
        np.testing.assert_allclose(between, theory.plateaus[1:-1], atol=0.01)
        assert run.loss[0] == pytest.approx(theory.plateaus[0], abs=1e-6)

    def test_small_start_finds_the_smallest_solution_and_a_large_one_does_not(self):
        x, x_prime = random_pairs(9)
        theory = StepwiseTheory.from_pairs(x, x_prime, 2)
        smallest = float((1 / theory.gamma).sum())
        norms = {}
        for init_std in (1e-8, 0.5):
            run = simulate_linear_ssl(
                x, x_prime, 2, learning_rate=0.02, init_std=init_std, seed=1, tolerance=1e-12
            )
            assert run.converged
            norms[init_std] = (run.weights**2).sum()
        assert norms[1e-8] == pytest.approx(smallest, rel=1e-3)
        assert norms[0.5] > 1.1 * smallest

    def test_momentum_speeds_the_clock_up(self, digits):
        weights = np.random.default_rng(5).normal(0, 1e-4, (2, 64))
        theory = StepwiseTheory.from_pairs(*digits, 2)
        run = simulate_linear_ssl(
            *digits, 2, learning_rate=0.02, momentum=0.9, weights0=weights, record_every=1
        )
        steps = optimiser_steps(
            theory.competing_steps(weights).times, learning_rate=0.02, momentum=0.9, gamma=theory.gamma
        )
        # The first steps build up the velocity, about 1 / (1 - momentum) of them.
        np.testing.assert_allclose(measure_steps(run.steps, run.eigenvalues).times, steps, atol=12)
        flow = optimiser_steps(theory.competing_steps(weights).times, learning_rate=0.02, momentum=0.9)
        assert (steps > 1.1 * flow).all()

    @pytest.mark.parametrize("momentum", [0.0, 0.5])
    @pytest.mark.parametrize("learning_rate", [1e-6, 1e-12, 1e-200])
    def test_steps_of_a_tiny_learning_rate_are_those_of_the_flow(self, learning_rate, momentum):
        steps = optimiser_steps(2.0, learning_rate=learning_rate, momentum=momentum, gamma=1.0)
        flow = 2.0 * (1 - momentum) / learning_rate
        growth = 4 * learning_rate / (1 - momentum)  # per step, to leading order; its next order below
        assert steps == pytest.approx(flow * (1 + growth / (1 - momentum) - growth / 2), rel=1e-9)

    @pytest.mark.parametrize("momentum", [0.0, 0.5])
    def test_stability_ends_at_the_largest_learning_rate(self, momentum):
        x, x_prime = random_pairs(10)
        theory = StepwiseTheory.from_pairs(x, x_prime, 2)
        limit = largest_learning_rate(theory.gamma, momentum=momentum)
        converges = []
        for factor in (0.95, 1.05):
            run = simulate_linear_ssl(
                x, x_prime, 2, learning_rate=factor * limit, momentum=momentum, max_steps=2000,
                weights0=(theory.directions.T / np.sqrt(theory.gamma)).T * 1.001,
                tolerance=1e-20, record_every=1,
            )  # fmt: skip
            converges.append(run.converged)
        assert converges == [True, False]


class TestInitialisation:
    def test_expected_times_and_spread_are_those_of_random_weights(self):
        theory = StepwiseTheory.from_pairs(*random_pairs(11), 4)
        generator = np.random.default_rng(0)
        times = np.array(
            [theory.step_times(weights0=generator.normal(0, 1e-5, (4, 6))) for _ in range(4000)]
        )  # fmt: skip
        error = theory.step_time_spread / np.sqrt(4000)
        assert (np.abs(times.mean(axis=0) - theory.step_times(init_std=1e-5)) < 4 * error).all()
        np.testing.assert_allclose(times.std(axis=0), theory.step_time_spread, rtol=0.1)

    def test_later_directions_start_lower_than_their_columns(self):
        theory = StepwiseTheory.from_pairs(*random_pairs(11), 4)
        weights = np.random.default_rng(1).normal(0, 1e-3, (4, 6))
        columns = np.linalg.norm(weights @ theory.directions.T, axis=0)
        scales = theory.initial_scales(weights0=weights)
        assert scales[0] == pytest.approx(columns[0])
        assert (scales[1:] < columns[1:]).all()

    def test_a_direction_that_is_absent_is_never_learned(self):
        theory = StepwiseTheory.from_pairs(*random_pairs(12), 2)
        weights = np.zeros((2, 6))
        assert theory.step_times(weights0=weights).tolist() == [np.inf, np.inf]
        assert theory.competing_steps(weights).times.tolist() == [np.inf, np.inf]
        assert theory.loss(1e6, weights0=weights) == 2

    def test_one_that_starts_above_one_has_no_step(self):
        theory = StepwiseTheory.from_pairs([[1.0], [-1.0]], [[1.0], [-1.0]], 1)
        assert theory.step_times(weights0=[[2.0]]).tolist() == [-np.inf]
        assert theory.eigenvalues([0, 1e5], weights0=[[2.0]]).ravel().tolist() == [4.0, 1.0]

    def test_exactly_one_description_of_the_start(self):
        theory = StepwiseTheory.from_pairs(*random_pairs(12), 2)
        for start in ({}, {"init_std": 0.1, "weights0": np.ones((2, 6))}):
            with pytest.raises(InputError, match="exactly one of weights0 and init_std"):
                theory.step_times(**start)


class TestNegativeAndMissingDirections:
    def test_directions_that_the_views_contradict_are_never_learned(self):
        x = np.array([[2.0, 1.0], [-2.0, 1.0], [2.0, -1.0], [-2.0, -1.0]])
        theory = StepwiseTheory.from_pairs(x, x * [1, -1], 2)
        assert theory.gamma.tolist() == [4.0]
        assert theory.n_modes == 1
        assert theory.plateaus.tolist() == [2.0, 1.0]
        assert theory.loss(1e4, init_std=1e-3) == pytest.approx(1.0)
        run = simulate_linear_ssl(x, x * [1, -1], 2, learning_rate=0.02, init_std=1e-3, max_steps=2000)
        assert run.loss[-1] == pytest.approx(1.0, abs=1e-6)

    def test_nothing_to_learn(self):
        x = np.array([[1.0], [-1.0]])
        with pytest.raises(InputError, match="no direction has a positive covariance across the two views"):
            StepwiseTheory.from_pairs(x, -x, 1)
        with pytest.raises(InputError, match="no direction"):
            StepwiseTheory.from_pairs(np.ones((5, 2)), np.ones((5, 2)), 1)

    def test_the_mean_is_a_direction_unless_it_is_subtracted(self):
        x, x_prime = random_pairs(13)
        far = StepwiseTheory.from_pairs(x + 100, x_prime + 100, 1, center=False)
        assert far.gamma[0] > 1000
        np.testing.assert_allclose(
            StepwiseTheory.from_pairs(x + 100, x_prime + 100, 3).gamma,
            StepwiseTheory.from_pairs(x, x_prime, 3).gamma,
            rtol=1e-9,
        )


class TestBadInput:
    @pytest.mark.parametrize("dim", [0, 7, -1])
    def test_dim(self, dim):
        with pytest.raises(InputError, match=rf"dim must be in \[1, n_features=6\], got {dim}"):
            StepwiseTheory.from_pairs(*random_pairs(0), dim)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda t: t.step_times(init_std=0), "init_std must be positive and finite, got 0"),
            (lambda t: t.step_times(init_std=np.nan), "init_std must be positive and finite, got nan"),
            (
                lambda t: t.step_times(weights0=np.ones((3, 6))),
                r"shape \(dim, n_features\)=\(2, 6\), got \(3, 6\)",
            ),
            (lambda t: t.competing_steps(np.full((2, 6), np.nan)), "weights0 must be finite"),
            (lambda t: t.loss(-1, init_std=0.1), "t must be finite and at least 0"),
            (lambda t: t.loss(np.nan, init_std=0.1), "t must be finite and at least 0"),
            (lambda t: t.embed(np.ones((2, 5))), "x must have 6 features, got 5"),
            (lambda t: optimiser_steps(1.0, learning_rate=0), "learning_rate must be positive"),
            (
                lambda t: optimiser_steps(1.0, learning_rate=1, momentum=1),
                r"momentum must be in \[0, 1\), got 1",
            ),
        ],
    )
    def test_message_says_what_was_expected(self, call, message):
        theory = StepwiseTheory.from_pairs(*random_pairs(0), 2)
        with pytest.raises(InputError, match=message):
            call(theory)

    def test_data_that_overflow(self):
        x = np.array([[1e200], [-1e200]])
        with pytest.raises(InputError, match="overflows; rescale the data"):
            StepwiseTheory.from_pairs(x, x, 1)

    def test_a_learning_rate_that_blows_up(self):
        with pytest.raises(InputError, match=r"not finite after \d+ steps: learning_rate=50"):
            simulate_linear_ssl(*random_pairs(0), 2, learning_rate=50, init_std=0.1)


class TestMeasureSteps:
    def test_ignores_what_has_not_risen_and_the_order_within_a_row(self):
        t = np.linspace(0, 10, 201)
        curves = np.stack([1e-4 * t, 1 / (1 + np.exp(-4 * (t - 3))), 1 / (1 + np.exp(-4 * (t - 6)))], axis=1)
        steps = measure_steps(t, curves)
        np.testing.assert_allclose(steps.times, [3, 6, np.nan], atol=1e-3)
        np.testing.assert_allclose(steps.widths[:2], np.log(81) / 4, rtol=1e-2)
        assert steps.count == 2

    @pytest.mark.parametrize(
        ("times", "curves"), [([0], [[1]]), ([0, 0], [[1], [1]]), ([0, 1], [[1], [np.nan]]), ([0, 1], [1, 1])]
    )
    def test_refuses_a_broken_record(self, times, curves):
        with pytest.raises(InputError):
            measure_steps(times, curves)
