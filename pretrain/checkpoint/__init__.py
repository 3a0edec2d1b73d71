"""Checkpoints: whole or absent, checked before they are read, independent of ranks and ZeRO stage."""

from pretrain.checkpoint.layout import FORMAT, Kind, Piece, checkpoint_path, checkpoints_of, step_of
from pretrain.checkpoint.reading import CheckpointReader, load_weights, read_state, restore_checkpoint
from pretrain.checkpoint.saver import Saver
from pretrain.checkpoint.verification import damage, latest_checkpoint, newest_whole

__all__ = [
    "FORMAT",
    "CheckpointReader",
    "Kind",
    "Piece",
    "Saver",
    "checkpoint_path",
    "checkpoints_of",
    "damage",
    "latest_checkpoint",
    "load_weights",
    "newest_whole",
    "read_state",
    "restore_checkpoint",
    "step_of",
]
