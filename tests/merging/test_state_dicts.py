"""Every method against its equations in float64, and the laws that any merge keeps."""

import numpy as np
import pytest
import torch

from petkit.errors import ConfigError, InputError
from petkit.merging import slices as slices_module
from petkit.merging.registry import METHODS
from petkit.merging.state_dicts import merge_state_dicts

NAMES = [method.name for method in METHODS]
ONE = {"slerp": {"t": 0.3}, "passthrough": {}}


def flat(tensors, names):
    return np.concatenate([tensors[name].double().numpy().ravel() for name in names])


def floats(family):
    return [name for name in family.base if family.base[name].is_floating_point()]


def deltas(family, name):
    base = family.base[name].double().numpy()
    return np.stack([model[name].double().numpy() - base for model in family.models])


def close(found, wanted, tolerance=1e-6):
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=0, atol=tolerance)


def merged(method, family, count=3, **more):
    models = family.models[: 1 if method in ONE else count]
    return merge_state_dicts(method, models, family.base, **{**ONE.get(method, {}), **more})


def test_linear_is_the_weighted_mean(family):
    found = merge_state_dicts("linear", family.models, weights=[1.0, 2.0, 5.0])
    for name in floats(family):
        stack = np.stack([model[name].double().numpy() for model in family.models])
        close(found[name], np.tensordot([0.125, 0.25, 0.625], stack, 1))


def test_task_arithmetic_adds_differences(family):
    found = merged("task_arithmetic", family, weights=[0.5, 0.25, 1.0], lambda_=0.8)
    for name in floats(family):
        wanted = 0.8 * np.tensordot([0.5, 0.25, 1.0], deltas(family, name), 1)
        close(found[name], family.base[name].double().numpy() + wanted)


def ties(stack, weights, kept):
    """TIES of flat differences, those of at least the kept-th magnitude."""
    trimmed = []
    for row, weight in zip(stack, weights, strict=True):
        threshold = np.sort(np.abs(row))[len(row) - kept]
        trimmed.append(weight * np.where(np.abs(row) >= threshold, row, 0))
    trimmed = np.stack(trimmed)
    sign = np.where(trimmed.sum(0) >= 0, 1, -1)
    agrees = np.sign(trimmed) == sign
    divisor = (np.array(weights)[:, None] * agrees).sum(0)
    return (trimmed * agrees).sum(0) / np.where(divisor == 0, 1, divisor)


def test_ties_trims_each_tensor(family):
    weights = [1.0, 0.5, 2.0]
    found = merged("ties", family, weights=weights, density=0.4)
    for name in floats(family):
        stack = deltas(family, name).reshape(3, -1)
        wanted = ties(stack, weights, int(0.4 * stack.shape[1]))
        close(found[name].flatten(), family.base[name].double().numpy().ravel() + wanted)


def test_ties_trims_all_tensors_together_with_a_global_scope(family):
    found = merged("ties", family, density=0.2, scope="global")
    names = floats(family)
    stack = np.stack([flat(model, names) for model in family.models]) - flat(family.base, names)
    wanted = flat(family.base, names) + ties(stack, [1, 1, 1], int(0.2 * stack.shape[1]))
    np.testing.assert_allclose(flat(found, names), wanted, atol=1e-6)


def test_sce_weighs_by_squares_and_erases_the_minority(family):
    found = merged("sce", family)
    for name in floats(family):
        stack = deltas(family, name)
        weights = (stack**2).reshape(3, -1).mean(1)
        weights = (weights / weights.sum()).reshape(3, *[1] * (stack.ndim - 1))
        counted = weights * (np.sign(stack) == np.where(stack.sum(0) >= 0, 1, -1))
        wanted = (counted * stack).sum(0) / counted.sum(0)
        close(found[name], family.base[name].double().numpy() + wanted)


def test_sce_selects_by_variance(family):
    found = merged("sce", family, select_topk=0.5)
    for name in floats(family):
        variance = deltas(family, name).var(0)
        kept = int(0.5 * variance.size)
        still = np.argsort(variance.ravel())[: variance.size - kept]
        base = family.base[name].double().numpy().ravel()
        close(found[name].flatten()[still], base[still])
        assert (found[name].flatten().double().numpy() != base).sum() == kept


def test_slerp_keeps_to_the_circle(family):
    found = merge_state_dicts("slerp", family.models[:1], family.base, t=0.3)
    name = "model.layers.0.attn.weight"
    a, b = (one[name].double().numpy().ravel() for one in (family.base, family.models[0]))
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    wanted = (np.sin(0.7 * angle) * a + np.sin(0.3 * angle) * b) / np.sin(angle)
    # Nearly parallel tensors are interpolated along the line.
    line = 0.7 * a + 0.3 * b
    close(found[name].flatten(), line if np.cos(angle) > 0.9995 else wanted)


def test_model_stock_is_drawn_to_the_base_by_the_angle(family):
    found = merged("model_stock", family)
    name = "model.layers.1.mlp.weight"
    stack = deltas(family, name).reshape(3, -1)
    unit = stack / np.linalg.norm(stack, axis=1, keepdims=True)
    cosine = np.mean([unit[i] @ unit[j] for i, j in ((0, 1), (0, 2), (1, 2))])
    t = 3 * cosine / (1 + 2 * cosine)
    close(found[name].flatten(), family.base[name].double().numpy().ravel() + t * stack.mean(0))


def test_breadcrumbs_leaves_both_ends_out(family):
    found = merged("breadcrumbs", family, count=1, density=0.5, gamma=0.1)
    for name in floats(family):
        delta = deltas(family, name)[0].ravel()
        order = np.argsort(np.abs(delta))
        top = len(delta) - int(0.1 * len(delta))
        wanted = np.zeros_like(delta)
        middle = order[top - int(0.5 * len(delta)) : top]
        wanted[middle] = delta[middle]
        close(found[name].flatten(), family.base[name].double().numpy().ravel() + wanted)


def test_tsv_of_one_model_is_the_model(family):
    close(
        merged("tsv", family, count=1)["model.layers.0.mlp.weight"],
        family.models[0]["model.layers.0.mlp.weight"],
        1e-5,
    )


def test_tsv_keeps_a_share_of_each_tasks_triplets(family):
    name = "model.layers.2.attn.weight"
    found = merged("tsv", family)[name].double().numpy() - family.base[name].double().numpy()
    assert np.linalg.matrix_rank(found, tol=1e-4) == 6
    lefts, values, rights = [], [], []
    for delta in deltas(family, name):
        u, s, v = np.linalg.svd(delta)
        lefts.append(u[:, :2]), values.append(s[:2]), rights.append(v[:2].T)
    u, _, v = np.linalg.svd(np.concatenate(lefts, 1), full_matrices=False)
    p, _, q = np.linalg.svd(np.concatenate(rights, 1), full_matrices=False)
    np.testing.assert_allclose(found, (u @ v) * np.concatenate(values) @ (p @ q).T, atol=1e-5)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_draws_are_the_same_whatever_the_pieces(family, method, monkeypatch):
    whole = merged(method, family, density=0.5, seed=3)
    monkeypatch.setattr(slices_module, "PIECE", 7)
    again = merged(method, family, density=0.5, seed=3)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    other = merged(method, family, density=0.5, seed=4)
    assert not torch.equal(whole["model.embed.weight"], other["model.embed.weight"])


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_what_is_dropped_is_made_up_for_on_average(family, method):
    base = {"w": torch.zeros(200, 500)}
    model = {"w": torch.ones(200, 500)}
    found = merge_state_dicts(
        method, [model], base, density=0.25, **({"epsilon": 0.1} if "della" in method else {})
    )
    assert abs(float(found["w"].mean()) - 1) < 0.02
    assert 0.2 < float((found["w"] != 0).double().mean()) < 0.3


# Model stock takes two models at least.
@pytest.mark.parametrize("method", [name for name in NAMES if name != "model_stock"])
def test_one_model_at_weight_one_is_the_model(family, method):
    ends = {"t": 1.0} if method == "slerp" else {}
    found = merge_state_dicts(method, family.models[:1], family.base, **ends)
    for name in family.base:
        close(found[name], family.models[0][name], 1e-5)


@pytest.mark.parametrize("method", ["linear", "passthrough"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_model_is_kept_bit_for_bit(family, method, dtype):
    model = {name: one.to(dtype) for name, one in family.models[0].items()}
    found = merge_state_dicts(method, [model])
    assert all(torch.equal(found[name], model[name]) for name in model)


@pytest.mark.parametrize("method", NAMES)
def test_models_that_equal_the_base_give_the_base(family, method):
    count = 1 if method in ONE else 2
    found = merge_state_dicts(method, [family.base] * count, family.base, **ONE.get(method, {}))
    for name in family.base:
        close(found[name], family.base[name], 1e-5)


@pytest.mark.parametrize("method", [name for name in NAMES if name not in ONE])
def test_order_of_equal_weights_does_not_matter(family, method):
    # At the default density of 1 nothing is drawn.
    there = merge_state_dicts(method, family.models, family.base)
    back = merge_state_dicts(method, family.models[::-1], family.base)
    for name in there:
        close(there[name], back[name], 1e-5)


def test_numbers_are_rounded_once(half_family):
    found = merge_state_dicts("linear", half_family.models)
    name = "model.embed.weight"
    exact = torch.stack([model[name].double() for model in half_family.models]).mean(0)
    # Half a step of eight significant bits, and float32's own rounding before.
    assert bool(((found[name].double() - exact).abs() <= exact.abs() * (2**-8 + 2**-20)).all())
    assert found[name].dtype == torch.bfloat16


def test_other_dtypes_than_floats_are_the_bases(family):
    family.models[0]["model.steps"] = torch.tensor(9)
    assert int(merged("ties", family)["model.steps"]) == 7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: merge_state_dicts("tis", f.models), "got 'tis'; did you mean ties?"),
        (lambda f: merge_state_dicts("ties", f.models), "ties needs base_model"),
        (lambda f: merge_state_dicts("slerp", f.models, f.base, t=0.5), "slerp merges 1 models beside"),
        (lambda f: merge_state_dicts("slerp", f.models[:1], f.base), "t is required"),
        (lambda f: merge_state_dicts("ties", f.models, f.base, density=1.5), "of model 0 must be from"),
        (lambda f: merge_state_dicts("ties", f.models, f.base, densty=1), "ties has no parameter densty"),
        (lambda f: merge_state_dicts("linear", f.models, weights=[1, -1, 0]), "must not sum to 0"),
        (lambda f: merge_state_dicts("ties", f.models, f.base, weights=[1, 0.5, -0.999]),
         "1, -0.999 sum to 0.001"),
        (lambda f: merge_state_dicts("dare_ties", f.models, f.base, weights=[0.5, 0.5, -1], normalize=True),
         "0.5, 0.5, -1 sum to 0, by which normalize divides"),
        (lambda f: merge_state_dicts("linear", f.models, weights=[1, 1]), "each of the 3 models, got 2"),
        (lambda f: merge_state_dicts("sce", f.models, f.base, weights=[1, 1, 1]), "sce has no weights"),
        (
            lambda f: merge_state_dicts("della", f.models, f.base, density=0.1, epsilon=0.2),
            "must lie between 0 and 1, got 0.1 and 0.2",
        ),
    ],
)  # fmt: skip
def test_what_is_asked_wrongly_is_named(family, call, message):
    with pytest.raises(ConfigError) as error:
        call(family)
    assert message in str(error.value)


def test_weights_of_both_signs_that_do_not_cancel_are_normalized(family):
    weights = [1, 0.5, -0.2]
    assert merge_state_dicts("ties", family.models, family.base, weights=weights)
    assert merge_state_dicts("ties", family.models, family.base, weights=[1, 0, -1], normalize=False)


def test_shapes_names_and_numbers_that_do_not_fit_are_named(family):
    short = {**family.models[1], "model.norm.weight": torch.zeros(5)}
    with pytest.raises(
        InputError, match=r"model.norm.weight must have one shape in all models, it is \(6,\) in"
    ):
        merge_state_dicts("linear", [family.models[0], short])
    lacking = {name: one for name, one in family.models[1].items() if name != "model.norm.weight"}
    with pytest.raises(InputError, match=r"model 1 and model 0 differ in model.norm.weight"):
        merge_state_dicts("linear", [family.models[0], lacking])
    broken = {**family.models[1], "model.norm.weight": torch.tensor([1.0, 2, float("nan"), 4, 5, 6])}
    for method, base in (("linear", None), ("ties", family.base)):
        with pytest.raises(
            InputError, match=r"model 1 must hold finite numbers, model.norm.weight holds nan"
        ):
            merge_state_dicts(method, [family.models[0], broken], base)


def test_tsv_takes_lambda_of_vectors_too(family):
    merged = merge_state_dicts("tsv", family.models, family.base, lambda_=0.8)
    name = "model.norm.weight"
    base, models = family.base[name].double(), [one[name].double() for one in family.models]
    wanted = base + 0.8 * (sum(models) / 3 - base)
    torch.testing.assert_close(merged[name].double(), wanted, rtol=1e-6, atol=1e-6)
