"""One side of `against_peer.py` in a process of its own: two runtimes in one process would fight for its threads.

    python benchmarks/one_side.py SPEC      SPEC: JSON of `against_peer.Spec`

Builds the case and runs it twice, says so in a line of JSON, then answers each line that it reads, a number of calls and whether to
wait for each, with the seconds of a call. Ends with its input. What libraries print goes to standard error.
"""

import contextlib
import ctypes
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

WARM_UP = 2  # calls before any is timed


class Side:
    """A case, ready to run.

    Attributes:
        call: starts one training step, or one inference; the device may still be working when it returns.
        wait: until the device has done all that was started, and the last result is on the host.
        peak_bytes: the most memory so far: of the accelerator, or None.
        about: versions, and what else is known of the program.
    """

    def __init__(
        self,
        call: Callable[[], None],
        wait: Callable[[], None],
        peak_bytes: Callable[[], int | None],
        about: dict[str, Any],
    ):
        self.call, self.wait, self.peak_bytes, self.about = call, wait, peak_bytes, about


def make_batch(spec: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random pixels and boxes; every slot is valid."""
    rng = np.random.default_rng(0)
    size = spec["config"]["data"]["image_size"]
    slots = spec["config"]["model"]["slot_attention"]["num_slots"]
    lead = spec["batch"], spec["frames"]
    corners = np.sort(rng.random((*lead, slots, 2, 2), np.float32), axis=-2)
    return {
        "video": rng.integers(0, 256, (*lead, size, size, 3), np.uint8),
        "boxes": corners.reshape(*lead, slots, 4),
        "slot_mask": np.ones((lead[0], slots), bool),
    }


def ours(spec: dict[str, Any]) -> Side:
    """What `main.py` and `segment` run: the compiled training step, or pixels to masks."""
    import jax
    from ml_collections import ConfigDict

    from smoothsa_jax.config import canonical
    from smoothsa_jax.evaluation.masks import masks_from_attention
    from smoothsa_jax.training.runtime import keep_freed_memory
    from smoothsa_jax.training.step import build_training

    keep_freed_memory()
    training = build_training(canonical(ConfigDict(spec["config"])))
    batch, key = make_batch(spec), jax.random.key(0)
    size = batch["video"].shape[2:4]

    def infer(params, frozen, batch, key):
        outputs = training.predict(params, frozen, batch, key)
        mask = batch["slot_mask"]
        return masks_from_attention(outputs["decoder_attention"], training.grid, size, mask)

    train = spec["kind"] == "train"
    program = training.train_step if train else jax.jit(infer)
    first = training.state if train else training.state.params
    begin = time.perf_counter()
    compiled = program.lower(first, training.frozen, training.place(batch), key).compile()
    about = {"versions": {"jax": jax.__version__}, "compile_seconds": time.perf_counter() - begin}
    analysis = compiled.memory_analysis()
    if analysis is not None:
        about["program_bytes"] = (
            analysis.argument_size_in_bytes
            + analysis.temp_size_in_bytes
            + analysis.output_size_in_bytes
            - analysis.alias_size_in_bytes
        )
    kept: dict[str, Any] = {"first": first, "count": 0}

    def call():
        step_key = jax.random.fold_in(key, kept["count"])
        found = compiled(kept["first"], training.frozen, training.place(batch), step_key)
        if train:
            kept["first"], found = found
        kept["last"], kept["count"] = found, kept["count"] + 1

    def peak_bytes():
        statistics = jax.devices()[0].memory_stats() or {}
        return statistics.get("peak_bytes_in_use")

    return Side(call, lambda: jax.device_get(kept["last"]), peak_bytes, about)


def peer(spec: dict[str, Any]) -> Side:
    """The same in PyTorch, in the authors' manner; made no slower than it can be (benchmarks/README.md)."""
    import torch
    from peer_torch.model import SmoothSA
    from peer_torch.step import TrainStep

    _keep_freed_memory()
    torch.set_num_threads(spec["threads"])
    torch.set_float32_matmul_precision("high" if spec["device"] == "gpu" else "highest")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    device = torch.device("cuda" if spec["device"] == "gpu" else "cpu")
    config, dtype = spec["config"], getattr(torch, spec["dtype"])
    arrays = make_batch(spec)
    batch = {name: torch.from_numpy(arrays[name]) for name in ("video", "boxes")}
    batch["boxes"] = batch["boxes"][:, 0].contiguous()
    if device.type == "cuda":
        batch = {name: x.pin_memory() for name, x in batch.items()}
    size = arrays["video"].shape[2:4]
    noise_shape = (*arrays["slot_mask"].shape, config["model"]["slot_attention"]["slot_size"])
    boxes_used = config["model"]["initializer"]["name"] == "boxes"
    compiled = spec["side"] == "compiled"
    # Whole, a clip's program repeats its parts for every frame and takes minutes to compile.
    whole = {"mode": spec["mode"]} if compiled and spec["whole"] else None

    train = spec["kind"] == "train"
    model = SmoothSA(config["model"], size).to(device).train(train)
    if compiled and not whole:
        model.compile_parts(mode=spec["mode"])
    if train:
        step = TrainStep(model, config, dtype, whole)
    else:
        masks = model.masks
        if whole:
            masks = torch.compile(masks, fullgraph=True, dynamic=False, **whole)

        def step(*inputs):
            half = dtype != torch.float32
            with (
                torch.inference_mode(),
                torch.autocast(device.type, dtype if half else None, enabled=half),
            ):
                return masks(*inputs)

    kept: dict[str, Any] = {}

    def call():
        video = batch["video"].to(device, non_blocking=True)
        boxes = batch["boxes"].to(device, non_blocking=True) if boxes_used else None
        kept["last"] = step(video, torch.randn(noise_shape, device=device), boxes)

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()
        last = kept["last"]
        return {k: x.cpu() for k, x in last.items()} if train else last.cpu()

    def peak_bytes():
        return torch.cuda.max_memory_allocated() if device.type == "cuda" else None

    about = {"versions": {"torch": torch.__version__}}
    if device.type == "cuda":
        about["device"] = torch.cuda.get_device_name()
    if spec["side"] == "eager":
        about["flop"] = count_flop(config, arrays["video"].shape, noise_shape, train)
    return Side(call, wait, peak_bytes, about)


def count_flop(config: dict, video: tuple[int, ...], noise: tuple[int, ...], train: bool) -> int:
    """FLOP of the matrix products and convolutions of one call, backward included; nothing is computed."""
    import torch
    from peer_torch.model import SmoothSA, losses
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flop:
        model = SmoothSA(config["model"], tuple(video[2:4])).train(train)
        boxes = torch.empty(*noise[:2], 4)
        with torch.set_grad_enabled(train):
            outputs = model(torch.empty(video), torch.empty(noise), boxes)
        if train:
            sum(losses(outputs, config["loss"]).values()).backward()
    return flop.get_total_flops()


def _keep_freed_memory() -> None:
    """As `smoothsa_jax.training.runtime.keep_freed_memory`, without JAX in the process: it speeds up PyTorch too."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(-3, 1 << 30) or mallopt(-3, 1 << 25):
            mallopt(-1, (1 << 31) - 1)


def forget_peak() -> None:
    """The process's peak starts again from what it needs now, without what building the case has left; Linux with glibc only."""
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
    """Seconds of a call: of each, waiting for it, or the mean of all."""
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
    clock = time.process_time if spec["clock"] == "processor" else time.perf_counter
    begin = time.perf_counter()
    side = (ours if spec["side"] == "ours" else peer)(spec)
    time_calls(side, WARM_UP, each=True)
    ready = time.perf_counter() - begin
    forget_peak()
    say(about=side.about, ready_seconds=ready, seconds=time_calls(side, 1, True, clock)[0])
    for line in sys.stdin:
        asked = json.loads(line)
        times = time_calls(side, asked["calls"], asked["each"], clock)
        peak = side.peak_bytes()
        say(times=times, peak_bytes=peak_resident_bytes() if peak is None else peak)


if __name__ == "__main__":
    main()
