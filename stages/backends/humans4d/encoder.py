"""PHALP's texture autoencoder alone, out of HMAR's weights: the mesh stage encodes with it, the tracker compares."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

from stages.backends.humans4d import devices
from stages.backends.humans4d.crops import SIZE
from stages.backends.humans4d.options import Options
from stages.protocols import Report

_PREFIX = "encoding_head."
_CUT = len("hmar.")
"""HMAR's own loader cuts this many characters off every name."""


def load_encoder(options: Options, report: Report) -> Any:
    """An ``EncodingHead`` in eval mode on the options' device: (B, 4, 256, 256) to (B, 16, 16, 16).

    Raises:
        ConfigurationError: the weights cannot be read or are another model's.
    """
    head = import_module("phalp.models.heads.encoding_head").EncodingHead
    cfg = SimpleNamespace(phalp=SimpleNamespace(encode_type="4c"))
    with devices.without_initialisation():
        encoder = head(cfg=cfg, img_H=SIZE, img_W=SIZE)
    content = devices.read_torch(options.hmar_weights, "model")
    state = {
        name[_CUT + len(_PREFIX) :]: value for name, value in content.items() if name[_CUT:].startswith(_PREFIX)
    }
    devices.load_state(
        encoder, state, options, report, source=options.hmar_weights, half=set(),
        may_lack=lambda name: name.endswith("num_batches_tracked"),
    )  # fmt: skip
    return encoder
