"""Run one side of `against_peer.py`, in its own process, because two runtimes would share threads.

    python benchmarks/one_side.py SPEC      SPEC: JSON of `against_peer.make_spec`

Builds the case, runs it twice and prints a line of JSON. Then answers each line of input, which
says how many calls to make and whether to wait for each, with the seconds of a call. Ends when its
input ends. What libraries print goes to standard error.
"""

import collections
import contextlib
import ctypes
import dataclasses
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

from smoothsa_jax.devices.memory_allocator import keep_freed_memory

WARM_UP = 2  # calls before any is timed
# Calls of ours at once: each holds its own input on the device, where PyTorch reuses one buffer.
IN_FLIGHT = 4


@dataclasses.dataclass(frozen=True)
class Side:
    """A case, ready to run.

    Attributes:
        call: starts one training step, or one inference; the device may still be working when it
            returns.
        wait: waits until the device has done all that was started, and returns the last result,
            copied to the host.
        peak_bytes: the peak memory of the accelerator so far, or None.
        forget_peak: resets the peak to what is allocated now.
        about: versions and other facts about the program.
    """

    call: Callable[[], None]
    wait: Callable[[], Any]
    peak_bytes: Callable[[], int | None]
    forget_peak: Callable[[], None]
    about: dict[str, Any]


def make_batch(spec: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return random pixels and boxes; every slot is valid."""
    rng = np.random.default_rng(0)
    size = spec["config"]["data"]["image_size"]
    slots = spec["config"]["model"]["num_slots"]
    lead = spec["batch"], spec["frames"]
    corners = np.sort(rng.random((*lead, slots, 2, 2), np.float32), axis=-2)
    return {
        "video": rng.integers(0, 256, (*lead, size, size, 3), np.uint8),
        "boxes": corners.reshape(*lead, slots, 4),
        "slot_mask": np.ones((lead[0], slots), bool),
    }


def make_slots(spec: dict[str, Any]) -> np.ndarray:
    """Return random slots (B,N,D) of a previous frame; the time does not depend on them."""
    sizes = spec["config"]["model"]
    shape = spec["batch"], sizes["num_slots"], sizes["slot_size"]
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def ours(spec: dict[str, Any]) -> Side:
    """Return ours: the training step of `main.py`, or pixels to masks as one program, of whole
    clips or of one further frame of streams."""
    import jax
    from ml_collections import ConfigDict

    from benchmarks import cases
    from smoothsa_jax.config.values import canonical
    from smoothsa_jax.devices.compiling import memory_of
    from smoothsa_jax.training.step import build_training

    if jax.default_backend() != spec["device"]:
        raise RuntimeError(f"JAX computes on {jax.default_backend()}, expected {spec['device']}")
    training = build_training(canonical(ConfigDict(spec["config"])))
    batch, key, kind = make_batch(spec), jax.random.key(0), spec["kind"]
    # A program takes what the previous call left, arrays, and what comes from the host.
    if kind == "train":
        program, left, arrays = training.train_step, training.state, training.frozen
    else:
        arrays = training.state.params, training.frozen
        # The peer has no optimizer here either.
        training = dataclasses.replace(training, state=None)
        masks = cases.pixels_to_masks(training)
        program, left = jax.jit(lambda left, arrays, *inputs: (left, masks(*arrays, *inputs))), None
    if kind == "stream":
        batch = {name: batch[name] for name in ("video", "slot_mask")}
        program = following_masks(training)
        left = jax.device_put(make_slots(spec), training.batch_sharding)
    kept: dict[str, Any] = {"left": left, "count": 0}

    def from_host():
        if kind == "stream":
            # As `Segmenter.stream` gives it; nothing is random after the first frame.
            return (batch,)
        return training.place(batch), jax.random.fold_in(key, kept["count"])

    begin = time.perf_counter()
    compiled = program.lower(left, arrays, *from_host()).compile()
    about = {"versions": {"jax": jax.__version__}, "compile_seconds": time.perf_counter() - begin}
    memory = memory_of(compiled)
    if memory is not None:
        about["program_bytes"] = memory.peak
    found: collections.deque = collections.deque(maxlen=IN_FLIGHT)

    def call():
        if len(found) == IN_FLIGHT:
            jax.block_until_ready(found[0])
        kept["left"], last = compiled(kept["left"], arrays, *from_host())
        found.append(last)
        kept["count"] += 1

    def peak_bytes():
        statistics = jax.devices()[0].memory_stats() or {}
        return statistics.get("peak_bytes_in_use")

    # JAX cannot reset an accelerator's peak, which the choice of kernels may have set;
    # `program_bytes` is what the compiler plans for a call.
    return Side(call, lambda: jax.device_get(found[-1]), peak_bytes, forget_peak, about)


def following_masks(training: Any) -> Callable:
    """Return what `Segmenter.stream` computes of a later frame, as one program.

    Returns:
        (slots (B,N,D) of the previous frame, arrays, batch of one frame) -> its slots, the slot of
        each pixel (B,1,H,W).
    """
    import jax

    from smoothsa_jax.evaluation.upsampling import segments_from_masks
    from smoothsa_jax.models.pruning import Carry
    from smoothsa_jax.tasks.task import MODEL

    definition = training.definitions[MODEL]

    def masks(slots, arrays, batch):
        model = definition.merge(*arrays, differentiated=False)
        mask, size = batch["slot_mask"], batch["video"].shape[2:4]
        constants = model.encode(batch["video"])
        given = model.target(batch, constants, None)
        outputs, _, _ = model.follow(constants["features"], given, Carry(slots, mask))
        found = segments_from_masks(outputs["masks"], size, mask, backend=definition.backend)
        return outputs["slots"][:, 0], found

    return jax.jit(masks, out_shardings=training.batch_sharding)


def peer(spec: dict[str, Any]) -> Side:
    """Return the same in PyTorch, in the authors' manner, as fast as it gets (see README.md)."""
    import torch
    from peer_torch.model import SmoothSA
    from peer_torch.step import TrainStep, inference

    torch.set_num_threads(spec["threads"])
    torch.set_float32_matmul_precision("high" if spec["device"] == "gpu" else "highest")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    device = torch.device("cuda" if spec["device"] == "gpu" else "cpu")
    config, kind, dtype = spec["config"], spec["kind"], getattr(torch, spec["dtype"])
    arrays = make_batch(spec)
    batch = {name: torch.from_numpy(arrays[name]) for name in ("video", "boxes")}
    batch["boxes"] = batch["boxes"][:, 0].contiguous()
    if device.type == "cuda":
        batch = {name: x.pin_memory() for name, x in batch.items()}
    size = arrays["video"].shape[2:4]
    noise_shape = (*arrays["slot_mask"].shape, config["model"]["slot_size"])
    boxes_used = config["model"]["initializer"]["cold"]["name"] == "boxes"
    compiled = spec["side"] == "compiled"
    # Whole, a clip's program repeats its parts for every frame and takes minutes to compile.
    whole = {"mode": spec["mode"]} if compiled and spec["whole"] else None

    model = SmoothSA(config["model"], size).to(device).train(kind == "train")
    if compiled and not whole:
        model.compile_parts(mode=spec["mode"])
    if kind == "train":
        step = TrainStep(model, config, dtype, whole)
    else:
        step = inference(
            model.follow if kind == "stream" else model.masks, device.type, dtype, whole
        )
    kept: dict[str, Any] = {"slots": torch.from_numpy(make_slots(spec)).to(device)}

    def call():
        video = batch["video"].to(device, non_blocking=True)
        if kind == "stream":
            kept["slots"], kept["last"] = step(video, kept["slots"])
            return
        boxes = batch["boxes"].to(device, non_blocking=True) if boxes_used else None
        kept["last"] = step(video, torch.randn(noise_shape, device=device), boxes)

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()
        last = kept["last"]
        return {k: x.cpu() for k, x in last.items()} if kind == "train" else last.cpu()

    def peak_bytes():
        return torch.cuda.max_memory_allocated() if device.type == "cuda" else None

    def forget():
        forget_peak()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    about = {"versions": {"torch": torch.__version__}}
    if device.type == "cuda":
        about["device"] = torch.cuda.get_device_name()
    if spec["side"] == "eager":
        about["flop"] = count_flop(config, arrays["video"].shape, noise_shape, kind)
    return Side(call, wait, peak_bytes, forget, about)


def count_flop(config: dict, video: tuple[int, ...], noise: tuple[int, ...], kind: str) -> int:
    """Return the FLOP of one call's matrix products and convolutions, backward included.

    Computes nothing.
    """
    import torch
    from peer_torch.model import SmoothSA, losses
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    train = kind == "train"
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flop:
        model = SmoothSA(config["model"], tuple(video[2:4])).train(train)
        with torch.set_grad_enabled(train):
            if kind == "stream":
                model.follow(torch.empty(video), torch.empty(noise))
            else:
                outputs = model(torch.empty(video), torch.empty(noise), torch.empty(*noise[:2], 4))
        if train:
            sum(losses(outputs, config["losses"]).values()).backward()
    return flop.get_total_flops()


def forget_peak() -> None:
    """Reset the process's peak memory to what it needs now; Linux with glibc only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def peak_resident_bytes() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def time_calls(
    side: Side, calls: int, each: bool, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Return the seconds of each call, waiting for it, or their mean without waiting."""
    if each:
        times = []
        for _ in range(calls):
            begin = clock()
            side.call()
            side.wait()
            times.append(clock() - begin)
        return times
    begin = clock()
    for _ in range(calls):
        side.call()
    side.wait()
    return [(clock() - begin) / calls]


def main() -> None:
    # Only this program writes to the pipe.
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    spec = json.loads(sys.argv[1])

    def say(**found):
        pipe.write(json.dumps(found) + "\n")
        pipe.flush()

    if hasattr(os, "sched_setaffinity"):  # before any thread is made
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec["threads"]])
    keep_freed_memory()  # on both sides: it speeds up either
    clock = time.process_time if spec["clock"] == "processor" else time.perf_counter
    begin = time.perf_counter()
    side = (ours if spec["side"] == "ours" else peer)(spec)
    time_calls(side, WARM_UP, each=True)
    ready = time.perf_counter() - begin
    side.forget_peak()
    say(about=side.about, ready_seconds=ready, seconds=time_calls(side, 1, True, clock)[0])
    for line in sys.stdin:
        asked = json.loads(line)
        time_calls(side, 1, each=True)  # not counted: the first call after a pause is a slow one
        times = time_calls(side, asked["calls"], asked["each"], clock)
        peak = side.peak_bytes()
        say(times=times, peak_bytes=peak_resident_bytes() if peak is None else peak)


if __name__ == "__main__":
    main()
