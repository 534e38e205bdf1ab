import numpy as np
import pytest


def scores_by_loops(dense, features, k, h, normalize, neighbourhood="target"):
    n = len(features)
    lengths = np.sqrt((features**2).sum(axis=1))
    if normalize:
        features = np.array(
            [f / max(length, 1e-12) for f, length in zip(features, lengths, strict=True)]
        )
        lengths = np.sqrt((features**2).sum(axis=1))
    similarity = np.full((n, n), -np.inf)
    for i in range(n):
        for j in range(n):
            if i != j:
                scale = lengths[i] * lengths[j] + h
                similarity[i, j] = features[i] @ features[j] / scale if scale > 0 else 0.0
    near = [set(np.argsort(-similarity[j], kind="stable")[:k]) for j in range(n)]
    result = np.zeros((len(dense), n))
    for u in range(len(dense)):
        for j in range(n):
            for i in np.flatnonzero(dense[u]):
                if i != j and (i in near[j] if neighbourhood == "target" else j in near[i]):
                    result[u, j] += similarity[i, j]
    return result


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("neighbourhood", ["target", "history"])
def test_one_modality_by_loops(
    normalize, neighbourhood, build, fit, train, dense, given, all_scores
):
    model = build(
        "itemknn-cbf",
        train,
        given[:1],
        k=3,
        shrinkage=0.7,
        normalize=normalize,
        neighbourhood=neighbourhood,
        combine="concat",
    )
    features = given[0].matrix.double().numpy()
    expected = scores_by_loops(dense, features, 3, 0.7, normalize, neighbourhood)
    scores = all_scores(fit(model, train), train)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)


def test_sum_divides_each_modality_by_its_deviation(build, fit, train, dense, given, all_scores):
    model = fit(build("itemknn-cbf", train, given, k=3), train)
    expected = np.zeros(dense.shape)
    for features in given:
        part = scores_by_loops(dense, features.matrix.double().numpy(), 3, 0.0, True)
        expected += part / part.std()
    np.testing.assert_allclose(all_scores(model, train), expected, rtol=1e-4, atol=1e-5)


def test_concat_joins_rows_of_length_one(build, fit, train, dense, given, all_scores):
    model = fit(build("itemknn-cbf", train, given, k=4, combine="concat"), train)
    rows = [g.matrix.double().numpy() for g in given]
    rows = [r / np.maximum(np.sqrt((r**2).sum(axis=1, keepdims=True)), 1e-12) for r in rows]
    expected = scores_by_loops(dense, np.concatenate(rows, axis=1), 4, 0.0, False)
    np.testing.assert_allclose(all_scores(model, train), expected, rtol=1e-4, atol=1e-5)


def test_units_of_a_feature_set_do_not_matter(build, fit, train, given, all_scores):
    from dataclasses import replace

    scaled = [replace(given[0], matrix=given[0].matrix * 1000), *given[1:]]
    one = all_scores(fit(build("itemknn-cbf", train, given), train), train)
    two = all_scores(fit(build("itemknn-cbf", train, scaled), train), train)
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_an_item_with_a_row_of_zeros_scores_zero_and_never_nan(
    build, fit, train, given, all_scores
):
    model = fit(build("itemknn-cbf", train, given[:1], k=50), train)  # row 2 is all zeros
    scores = all_scores(model, train)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores[:, 2], 0.0)
