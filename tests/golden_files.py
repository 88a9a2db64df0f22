"""Recorded numbers of other programs: files of tests/golden, and comparisons with them.

A `Golden` file is read in a `with` block; it fails if an array of results was not compared.
GOLDEN_DIR names another folder of the same layout, with other numbers and other sizes.
GOLDEN_REPORT=<file> writes a table of the largest errors.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from smoothsa_jax.interop.authors import from_authors, name_of
from smoothsa_jax.models.parameters import split

OWN_FOLDER = Path(__file__).parent / "golden"
FOLDER = Path(os.environ.get("GOLDEN_DIR") or OWN_FOLDER)

# Largest error over the largest value of an array.
FORWARD, FORWARD_BACKBONE, GRADIENT, LOSS, TRAINED, METRIC = 1e-5, 3e-5, 1e-4, 1e-5, 1e-3, 1e-6
BFLOAT16 = 2e-2  # all outputs of a model that computes in bfloat16
NOISE = 1e-6  # absolute, for what is analytically zero
ZERO_GRADIENT = "norm1q.bias"  # analytically zero, holds rounding noise
# Of a file's largest gradient: for what is zero in exact arithmetic; and what float32 leaves of a
# small gradient, in sums of large terms.
NO_GRADIENT, ROUNDING = 1e-5, 1e-7

RESULTS = ("out/", "grad/", "loss/", "param_end/")

worst: dict[tuple[str, str], float] = {}  # (file, kind of result) -> largest error


class Golden:
    """One golden file, and which of its arrays were used."""

    def __init__(self, name: str):
        self.name = name
        with np.load(FOLDER / f"{name}.npz") as file:
            self.arrays = dict(file)
        self.used: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> np.ndarray:
        """An input, or a result that the caller compares on its own."""
        self.used.add(key)
        return self.arrays[key]

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """All arrays of a prefix, without it."""
        return {
            key.removeprefix(prefix): self[key] for key in self.arrays if key.startswith(prefix)
        }

    def compare(self, key: str, actual, tolerance: float, *, change=lambda x: x) -> None:
        """Fail if `actual` is further from the recorded array than `tolerance` times its maximum.

        Args:
            change: brings the recorded array to our layout.
        """
        expected = np.asarray(change(self[key]), np.float64)
        actual = np.asarray(actual, np.float64)
        assert actual.shape == expected.shape, f"{key}: {actual.shape}, recorded {expected.shape}"
        missing = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(actual), missing, err_msg=key)
        error = np.abs(actual - expected)[~missing].max(initial=0.0)
        if key.endswith(ZERO_GRADIENT) and key.startswith("grad/"):
            largest, tolerance = 1.0, NOISE
        else:
            largest = np.abs(expected[~missing]).max(initial=0.0)
            kind = next((x for x in key.split("/") if f"{x}/" in RESULTS), "")
            relative = error / largest if largest else error
            worst[self.name, kind] = max(worst.get((self.name, kind), 0.0), relative)
        assert error <= tolerance * largest, (
            f"{key}: error {error:.2e}, largest value {largest:.2e}"
        )

    def compare_gradients(self, prefix: str, gradients: Mapping, module: str = "") -> None:
        """Compare gradients by parameter; without a recorded gradient, ours must be exactly zero.

        Args:
            prefix: of the recorded ones.
            module: the part of the model that these are in, in the authors' names.
        """
        rest = dict(gradients)
        for key in self.group(prefix):
            name, transform = name_of(module + key)
            self.compare(prefix + key, rest.pop(name), GRADIENT, change=transform)
        for name, gradient in rest.items():
            assert not np.any(gradient), f"{name} has a gradient, the authors' has none"

    def finish(self, parts: tuple[str, ...]) -> None:
        left = [key for key in self.arrays if key.startswith(parts) and key not in self.used]
        assert not left, f"{self.name}: never used or compared: {left}"


@contextlib.contextmanager
def golden(
    name: str, *, parts: tuple[str, ...] = ("inp/", *RESULTS), unused: tuple[str, ...] = ()
) -> Iterator[Golden]:
    """A golden file; all arrays in these parts of it have to be used, but for the `unused`."""
    file = Golden(name)
    yield file
    file.used |= set(unused)
    file.finish(parts)


def loaded(
    make,
    recorded: Mapping[str, np.ndarray],
    theirs: str,
    ours: str,
    patterns: tuple[str, ...] = (),
):
    """A module's definition, and the recorded parameters under its names, in full.

    Args:
        make: makes the module; it is only traced, as its own initial values are not wanted.
        patterns: of the names that are frozen.
    """
    definition, params, frozen = split(nnx.eval_shape(make), frozen=patterns)
    expected = {name: array.shape for name, array in {**params, **frozen}.items()}
    arrays = from_authors({theirs + key: array for key, array in recorded.items()})
    arrays = {name.removeprefix(ours): jnp.asarray(array) for name, array in arrays.items()}
    assert {name: array.shape for name, array in arrays.items()} == expected
    return definition, arrays


def compare_gradients(
    file: Golden,
    found: Mapping,
    recorded: Mapping,
    *,
    null: Callable[[str], object] = lambda name: False,
    tolerance: float = GRADIENT,
    nothing: float = NO_GRADIENT,
    rounding: float = ROUNDING,
    not_recorded: float | None = None,
    largest: float | None = None,
) -> None:
    """Compare gradients by name, to a share of the largest value of each.

    Args:
        recorded: the file's, under the names and in the layout of `found`.
        null: whether the gradient of that name, or a part of it, is zero in exact arithmetic.
        tolerance: the share.
        nothing: least bound for what is null, times `largest`.
        rounding: least bound for all others, times `largest`.
        not_recorded: how large a gradient may be that the file lacks, times `largest`; None: it has
            all of them.
        largest: the largest gradient of the file; None: of the `recorded` ones.
    """
    assert recorded and not recorded.keys() - found.keys()
    if largest is None:
        largest = max(np.abs(x).max() for x in recorded.values())
    for name, x in found.items():
        x = np.asarray(x)
        if name not in recorded:
            assert not_recorded is not None, f"the file has no gradient of {name}"
            size = np.abs(x).max(initial=0.0)
            assert size <= not_recorded * largest, f"{name} has a gradient, theirs has none"
            continue
        expected = np.asarray(recorded[name])
        assert x.shape == expected.shape, f"{name}: {x.shape}, recorded {expected.shape}"
        error, own = np.abs(x - expected).max(), np.abs(expected).max()
        if not null(name) and own:
            worst[file.name, "grad"] = max(worst.get((file.name, "grad"), 0.0), float(error / own))
        bound = max(tolerance * own, (nothing if null(name) else rounding) * largest)
        assert error <= bound, f"{name}: error {error:.2e}, largest value {own:.2e}"


def count(keys: Iterable[str], pattern: str) -> int:
    """Return how many numbers the keys have where the pattern has its group."""
    return 1 + max((int(m[1]) for key in keys if (m := re.search(pattern, key))), default=-1)


def compare_norms(
    file: Golden,
    found: Callable[[str], object],
    *,
    group: str = "grad_norm",
    tolerance: float = GRADIENT,
    least: float = 0.0,
    of_entries: bool = False,
) -> set[str]:
    """Compare the norms of large arrays' gradients, of which a file has no more; return their keys.

    Args:
        found: from a recorded key to our gradient.
        tolerance: a share of the norm.
        least: least bound, absolute.
        of_entries: whether the tolerance is that of each entry instead, as a share of the largest.
    """
    norms = dict(zip(map(str, file[f"{group}/keys"]), file[f"{group}/norms"], strict=True))
    for key, expected in norms.items():
        own = np.asarray(found(key), np.float64).ravel()
        error = abs(np.linalg.norm(own) - expected)
        # Entries that are off by so much give norms that are off by up to this.
        whole = np.sqrt(own.size) * np.abs(own).max() if of_entries else expected
        bound = max(tolerance * whole, least)
        assert error <= bound, f"{key}: error {error:.2e}, norm {expected:.2e}"
    return set(norms)


def with_prefix(arrays: Mapping, prefix: str) -> dict:
    return {prefix + name: array for name, array in arrays.items()}


def inner(pairs: list[tuple[jax.Array, np.ndarray]]) -> jax.Array:
    """The scalar whose gradient was recorded."""
    return sum(jnp.sum(x * cotangent) for x, cotangent in pairs)


def adam_state(state) -> optax.ScaleByAdamState:
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
    return next(x for x in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(x))


def write_report() -> None:
    """Write the table of largest errors, if GOLDEN_REPORT names a file."""
    if "GOLDEN_REPORT" in os.environ:
        kinds = [kind.rstrip("/") for kind in RESULTS]
        lines = [f"| file | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
        for name in sorted({name for name, _ in worst}):
            cells = [f"{worst[name, k]:.1e}" if (name, k) in worst else "" for k in kinds]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        Path(os.environ["GOLDEN_REPORT"]).write_text("\n".join(lines) + "\n")
