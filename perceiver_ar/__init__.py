"""Perceiver AR and its block library: models only, independent of how they are trained."""

from perceiver_ar.models.cache import PerceiverARCache
from perceiver_ar.models.perceiver_ar import PerceiverAR, PerceiverARConfig, draw_prefix_keep

__all__ = ["PerceiverAR", "PerceiverARCache", "PerceiverARConfig", "draw_prefix_keep"]
