import numpy as np


def test_each_column_solves_its_own_ridge_regression(build, fit, train, dense):
    model = fit(build("ease", train, [], regularization=3.0), train)
    for j in range(train.n_items):
        others = np.delete(np.arange(train.n_items), j)
        left = dense[:, others].T @ dense[:, others] + 3.0 * np.eye(len(others))
        solution = np.linalg.solve(left, dense[:, others].T @ dense[:, j])
        np.testing.assert_allclose(model.weights[others, j], solution, rtol=1e-5, atol=1e-7)


def test_the_diagonal_is_zero(build, fit, train):
    model = fit(build("ease", train, []), train)
    np.testing.assert_array_equal(model.weights.diagonal(), 0.0)


def test_scores_are_the_rows_of_r_times_b(build, fit, train, dense, all_scores):
    model = fit(build("ease", train, [], regularization=1.0), train)
    expected = dense @ model.weights.double().numpy()
    np.testing.assert_allclose(all_scores(model, train), expected, rtol=1e-5, atol=1e-6)
