"""Backends that fail as nobody foresees: a library's own exception, and the death of the process."""

from __future__ import annotations

import ctypes
import os
import signal
import time
import weakref

import torch

HELD: list[weakref.ref[torch.Tensor]] = []
"""what the failing frames held, and the model"""


def illegal_access(model, options):
    """As a kernel's fault is reported in a forward pass, with a large tensor in the frame."""
    weight = weakref.ref(model.model.layers[0].mlp.down_proj.weight)

    def fault(module, inputs):
        if len(inputs[0]) == 1:  # the first forward, which is taken while loading
            return
        large = torch.zeros(8 << 20)
        HELD.extend([weakref.ref(large), weight])
        raise RuntimeError(
            "CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA"
        )

    model.model.layers[1].register_forward_pre_hook(fault)
    return model


def segfault(model, options):
    """A kernel that reads where nothing is."""
    print("the backend's last words", flush=True)
    return ctypes.string_at(0)


def exits(model, options):
    """A library that gives up for the whole process."""
    os._exit(41)


def hangs(model, options):
    """A kernel that does not come back, or late."""
    time.sleep(float(os.environ.get("QSAE_HANG_SECONDS", "3600")))
    model.model.layers[0].mlp.down_proj.weight.data.mul_(1.001)
    return model


def once(model, options):
    """The machine kills this process the first time, wherever that is: a marker says that it has been."""
    marker = os.path.join(os.environ["QSAE_MARKERS"], "killed")
    if not os.path.exists(marker):
        with open(marker, "x", encoding="utf-8") as file:
            file.write(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    model.model.layers[0].mlp.down_proj.weight.data.mul_(1.001)
    return model


def waits(model, options):
    """At work for as long as nobody has killed something: a marker names this process and what started it."""
    place = os.environ["QSAE_MARKERS"]
    with open(os.path.join(place, f"at-work-{os.getpid()}"), "w", encoding="utf-8") as file:
        file.write(str(os.getppid()))
    until = time.monotonic() + 120
    while not os.path.exists(os.path.join(place, "go on")) and time.monotonic() < until:
        time.sleep(0.05)
    model.model.layers[0].mlp.down_proj.weight.data.mul_(1.001)
    return model
