"""Checkpoints as Lightning writes them of perceiver-io, from a list of what each is to hold on standard input.

Their hyper-parameters and callbacks are objects of modules that exist in this process only.
"""

import json
import sys
import types
from argparse import Namespace
from collections import OrderedDict
from dataclasses import make_dataclass
from enum import Enum
from pathlib import Path

import torch
from safetensors.torch import load_file


def define(module: str, **members: type) -> None:
    """Make `module` importable here, with `members` that say they come from it."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:depth]), types.ModuleType(".".join(parts[:depth])))
    for name, member in members.items():
        member.__module__, member.__qualname__ = module, name
        setattr(sys.modules[module], name, member)


class AttributeDict(dict):
    pass


class ModelCheckpoint:
    def __init__(self) -> None:
        self.best, self.scores = Path("a.ckpt"), [torch.tensor(2.8)]

    def __hash__(self) -> int:
        return 7


Task = Enum("Task", ["clm"])  # type: ignore[misc]
define("pytorch_lightning.utilities.parsing", AttributeDict=AttributeDict)
define("pytorch_lightning.callbacks", ModelCheckpoint=ModelCheckpoint)
define("perceiver.data.text.common", Task=Task)


def checkpoint(hparams: dict, weights: str, tokenizer: str | None, classes: list[str]) -> dict:
    """`classes` are those of the encoder and decoder of a Perceiver IO model."""
    module = "perceiver.model.text.mlm.backend"
    for role, name in zip(("encoder", "decoder"), classes, strict=False):
        define(module, **{name: make_dataclass(name, hparams[role])})
        hparams[role] = getattr(sys.modules[module], name)(**hparams[role])
    return {
        "epoch": 3,
        "pytorch-lightning_version": "1.9.5",
        "state_dict": OrderedDict((f"model.{name}", tensor) for name, tensor in load_file(weights).items()),
        "callbacks": {ModelCheckpoint(): {"state": ModelCheckpoint()}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3), "betas": (0.9, 0.99)}}, "param_groups": []}],
        "hparams_name": "kwargs",
        "hyper_parameters": AttributeDict(hparams | {"params": None, "args": Namespace(fast=True)}),
        "datamodule_hyper_parameters": AttributeDict(tokenizer=tokenizer, task=Task.clm),
    }


for request in json.load(sys.stdin):
    torch.save(checkpoint(**request["content"]), request["out"])
