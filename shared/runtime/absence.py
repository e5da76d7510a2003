"""Imports a library as if another one, which it would use if it could, were not installed."""

import sys
from importlib import import_module


def import_without(absent: str, module: str) -> None:
    """Import a module that does not find the absent one; who imports that later finds it.

    Nothing is changed where either has been imported already.
    """
    if module in sys.modules or absent in sys.modules:
        return
    sys.modules[absent] = None  # type: ignore[assignment]  # so an import of it fails
    try:
        import_module(module)
    finally:
        del sys.modules[absent]
