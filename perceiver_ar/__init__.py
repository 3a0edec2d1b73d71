"""Perceiver AR and its block library: models only, independent of how they are trained."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perceiver_ar.models.cache import PerceiverARCache
    from perceiver_ar.models.config import PerceiverARConfig
    from perceiver_ar.models.perceiver_ar import PerceiverAR, draw_prefix_keep

__all__ = ["PerceiverAR", "PerceiverARCache", "PerceiverARConfig", "draw_prefix_keep"]

_HOME = {"PerceiverARCache": "cache", "PerceiverARConfig": "config"}


def __getattr__(name: str) -> Any:
    # Configurations are read without torch, whose import takes longer than all that checks a run's YAML file.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"perceiver_ar.models.{_HOME.get(name, 'perceiver_ar')}"), name)
