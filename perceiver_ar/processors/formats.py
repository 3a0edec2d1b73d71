"""Which files are images and videos, by the ends of their names."""

from __future__ import annotations

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9"}
"""What videos can be written, and how they are encoded. All that PyAV knows can be read."""

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
"""What counts as a frame in a folder."""
