"""Products by oneDNN are those of torch, whatever the strides, and do without it."""

import pytest
import torch

from rheidae.estimator import products
from rheidae.estimator.products import WORTHWHILE, product

SHAPES = [(3, 4, 5), (256, 128, 128), (640, 256, 30), (7, 50_000, 7), (1, 1, 1)]


@pytest.fixture(params=[True, False], ids=["onednn", "torch alone"])
def with_onednn(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(products, "_onednn", lambda: None)
    elif products._onednn() is None:
        pytest.skip("this torch has no oneDNN")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_product_in_double_precision(shape, transposed, dtype, with_onednn):
    n, k, m = shape
    generator = torch.Generator().manual_seed(0)

    def matrix(rows, columns):
        if transposed:
            return torch.randn(columns, rows, dtype=dtype, generator=generator).T
        return torch.randn(rows, columns, dtype=dtype, generator=generator)

    a, b, bias = matrix(n, k), matrix(k, m), torch.randn(m, dtype=dtype, generator=generator)
    expected = a.double() @ b.double()
    atol = 1e-6 * k if dtype == torch.float32 else 1e-12 * k
    for found, wanted in ((product(a, b), expected), (product(a, b, bias), expected + bias.double())):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=atol)
        assert found.is_contiguous()


def test_only_large_products_of_single_precision_take_the_longer_way(monkeypatch):
    asked = []
    monkeypatch.setattr(products, "_onednn", lambda: asked.append(1))
    side = round(WORTHWHILE ** (1 / 3))
    large, small = torch.ones(side + 2, side + 2), torch.ones(side - 2, side - 2)
    product(small, small)
    product(large.double(), large.double())
    assert not asked
    product(large, large)
    assert asked


def test_an_operator_that_does_something_else_is_not_used(monkeypatch):
    class Other:
        @staticmethod
        def default(*arguments):
            return torch.zeros(2, 4)

    products._onednn.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", type("Ops", (), {"_linear_pointwise": Other}))
    try:
        assert products._onednn() is None
        products._onednn.cache_clear()
        monkeypatch.setattr(torch.ops, "mkldnn", object())
        assert products._onednn() is None
    finally:
        products._onednn.cache_clear()
