"""Programs for absent devices: reading their texts, comparing rows, and lowering."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import ROOT
from jax.sharding import Mesh
from recipes import recipes
from test_benchmarks import load

from smoothsa_jax.config.load import load_config
from smoothsa_jax.devices.mesh import AXES
from smoothsa_jax.errors import UserError
from smoothsa_jax.models.backend import Backend

sys.path.insert(0, str(ROOT))
from benchmarks import absent_devices, ahead_of_time, cases, programs  # noqa: E402
from benchmarks.collectives import collectives  # noqa: E402
from benchmarks.compiled_text import Program, size_of  # noqa: E402

check = load("check")

TEXT = """HloModule jit_step

FileNames
1 "/home/user/smoothsa_jax/models/layers.py"
2 "/usr/lib/jax/_src/numpy.py"

FunctionNames
1 "product"
2 "matmul"

FileLocations
1 {file_name_id=1 function_name_id=1 line=41 end_line=41 column=4 end_column=9}
2 {file_name_id=2 function_name_id=2 line=7 end_line=7 column=4 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}

%fused_computation (param_0: f32[4,8]) -> f32[4,8] {
  %param_0 = f32[4,8]{1,0} parameter(0)
  ROOT %tanh.1 = f32[4,8]{1,0} tanh(%param_0), metadata={op_name="jit(step)/tanh" stack_frame_id=2}
}

%body (arg: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %arg = (s32[], f32[4,8]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%arg), index=0
  %value = f32[4,8]{1,0} get-tuple-element(%arg), index=1
  %fusion.1 = f32[4,8]{1,0} fusion(%value), kind=kLoop, calls=%fused_computation, backend_config={"estimated_cycles":"100"}
  ROOT %tuple.1 = (s32[], f32[4,8]{1,0}) tuple(%count, %fusion.1)
}

ENTRY %main (x: f32[4,8], w: bf16[8,16]) -> f32[2,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %w = bf16[8,16]{1,0} parameter(1)
  %gemm = (bf16[4,16]{1,0}, s8[1024]{0}) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul", metadata={op_name="dot" stack_frame_id=2}
  %start = (s32[], f32[4,8]{1,0}) tuple(%x, %x)
  %while.1 = (s32[], f32[4,8]{1,0}) while(%start), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %last = f32[4,8]{1,0} get-tuple-element(%while.1), index=1
  ROOT %slice.1 = f32[1]{0} slice(%last), slice={[0:1]}
}
"""  # noqa: E501, HLO as XLA prints it


def test_bytes_turns_lines_and_cycles_are_read():
    kinds = {x.kind: x for x in Program(TEXT).operations()}
    product, loop, cut = kinds["__cublas$lt$matmul"], kinds["elementwise"], kinds["slice"]
    assert (product.times, product.line) == (1, "models/layers.py:41")
    assert product.moved == 4 * 16 * 2 + 4 * 8 * 4 + 8 * 16 * 2  # without the workspace
    assert (loop.times, loop.cycles, loop.line) == (5, 500, "models/layers.py:41")
    assert loop.moved == 5 * 2 * 4 * 8 * 4
    assert cut.moved == 4 + 10 * 4  # of a large operand ten times the result at most
    assert len(kinds) == 3


def test_sizes_of_shapes():
    assert size_of("(f32[2,3]{1,0:T(8,128)}, pred[], bf16[0,5])") == 24 + 1


# As the TPU's compiler writes loops: without the number of their turns.
BOUND = """
%cond (arg: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5), metadata={op_name="jit(step)/while"}
  %arg.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  %count.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%count.1, %limit), direction=LT, metadata={op_name="lt"}
}
"""


def without_turns(text: str) -> str:
    return text.replace(', backend_config={"known_trip_count":{"n":"5"}}', "")


def test_turns_are_those_of_the_condition_where_the_text_has_no_number():
    text = without_turns(TEXT).replace("\n%body", BOUND + "\n%body")
    assert list(Program(text).operations()) == list(Program(TEXT).operations())
    for unknown in (
        text.replace("direction=LT", "direction=NE"),
        text.replace("constant(5)", "x()"),
    ):
        loop = next(x for x in Program(unknown).steps() if x.body == "body")
        assert loop.times is None
        assert {x.times for x in Program(unknown).operations()} == {1}


def test_branches_and_calls_run():
    text = """HloModule jit_step, num_partitions=8

%one (a: f32[4]) -> f32[4] {
  ROOT %tanh.1 = f32[4]{0} tanh(%a)
}

%two (b: f32[4]) -> f32[4] {
  ROOT %exp.1 = f32[4]{0} exponential(%b)
}

ENTRY %main (x: f32[4], i: s32[]) -> f32[4] {
  %called = f32[4]{0} call(%x), to_apply=%one
  %either = f32[4]{0} conditional(%i, %x, %x), branch_computations={%one, %two}
  ROOT %whole = f32[32]{0} all-gather(%either), replica_groups={}, dimensions={0}
}
"""
    kinds = [x.kind for x in Program(text).operations()]
    assert kinds == ["tanh", "tanh", "exponential", "all-gather"]
    assert [(x.kind, x.group, x.result) for x in collectives(text)] == [("all-gather", 8, 128)]


BESIDE = """HloModule jit_step, num_partitions=4

%starts (p: bf16[2,8]) -> (bf16[2,8], bf16[8,8]) {
  %gathered.1 = bf16[8,8]{1,0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="3"}
  ROOT %begun = (bf16[2,8]{1,0}, bf16[8,8]{1,0}) custom-call(%gathered.1), custom_call_target="AsyncCollectiveStart"
}

%runs_beside (q: bf16[2,8], r: bf16[8,8]) -> bf16[8,8] {
  %product = bf16[8,8]{1,0} convolution(%r, %r), dim_labels=bf_io->bf
  ROOT %gathered.2 = bf16[8,8]{1,0} all-gather(%q), replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="3"}
}

%adds (a: f32[8]) -> f32[8] {
  ROOT %summed = f32[8]{0} all-reduce(%a), replica_groups={{0,1,2,3}}, to_apply=%add
}

ENTRY %main (x: bf16[2,8], y: f32[8]) -> f32[8] {
  %fusion.1 = (bf16[2,8]{1,0}, bf16[8,8]{1,0}) fusion(%x), kind=kCustom, calls=%starts
  %fusion.2 = bf16[8,8]{1,0} fusion(%x, %fusion.1), kind=kOutput, calls=%runs_beside
  %pair = (f32[2,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%z), replica_groups=[1,4]<=[4], dimensions={0}
  %whole = f32[8,8]{1,0} all-gather-done(%pair)
  %parts = ((f32[8,8]{1,0}), f32[2,8]{1,0}) reduce-scatter-start(%whole), replica_groups=[1,4]<=[4], to_apply=%add
  %part = f32[2,8]{1,0} reduce-scatter-done(%parts)
  %several = ((f32[2]{0}, s32[1,8]{1,0}), (f32[8]{0}, s32[4,8]{1,0})) all-gather-start(%y, %i), replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %fusion.3 = f32[8]{0} fusion(%y), kind=kLoop, calls=%adds
}
"""  # noqa: E501, HLO as XLA prints it


def test_what_is_sent_beside_other_work_counts_once():
    """A TPU's collective in several fusions, a GPU's with operands next to its results."""
    found = [(x.kind, x.group, x.result) for x in collectives(BESIDE)]
    assert found == [
        ("all-gather", 4, 8 * 8 * 2),
        ("all-gather", 4, 8 * 8 * 4),
        ("reduce-scatter", 4, 2 * 8 * 4),
        ("all-gather", 4, 8 * 4 + 4 * 8 * 4),
        ("all-reduce", 4, 8 * 4),
    ]


def test_a_real_program_is_read():
    """On a CPU, where no operation has cycles."""

    def step(x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, length=7)[0]

    text = jax.jit(step).lower(jnp.ones((64, 64))).compile().as_text()
    found = list(Program(text, "tests").operations())
    assert max(x.times for x in found) == 7
    assert sum(x.moved for x in found) >= 7 * 3 * 64 * 64 * 4
    assert any(x.line.startswith("test_ahead_of_time.py") for x in found)


def row(**figures):
    key = {"program": "train", "config": "movi_c", "dtype": "bfloat16", "target": "h100"}
    planned = {"peak_gb": 1.0, "moved_gb": 10.0, "operations": 1000, "sent_mb": {"all-reduce": 5.0}}
    planned["ms_estimated"] = 3.0
    return {**key, "mesh": "1x1", "batch": 8, **planned, **figures}


@pytest.mark.parametrize(
    ("figures", "status", "named"),
    [
        ({}, 0, ""),
        ({"moved_gb": 10.2, "operations": 900}, 0, ""),
        ({"moved_gb": 10.4}, 1, "moved_gb"),
        ({"operations": 1100}, 1, "operations"),
        ({"ms_estimated": 3.2}, 1, "ms_estimated"),
        ({"sent_mb": {"all-reduce": 5.0, "all-gather": 5.0}}, 1, "sent_mb"),
    ],
)
def test_check_names_what_the_compiler_plans_worse(figures, status, named, tmp_path, capsys):
    paths = [tmp_path / name for name in ("new.json", "old.json")]
    for path, found in zip(paths, (row(**figures), row()), strict=True):
        path.write_text(json.dumps({"kind": "ahead_of_time", "rows": [found]}))
    assert check.main([str(paths[0]), f"--recorded={paths[1]}"]) == status
    worse = [line for line in capsys.readouterr().out.splitlines() if line.endswith("worse")]
    assert len(worse) == status and all(named in line for line in worse)


def test_check_tells_what_is_missing_and_what_is_of_another_script(tmp_path, capsys):
    new, old, peer = (tmp_path / name for name in ("new.json", "old.json", "peer.json"))
    new.write_text(json.dumps({"kind": "ahead_of_time", "rows": [row()]}))
    old.write_text(json.dumps({"kind": "ahead_of_time", "rows": [row(), row(program="predict")]}))
    peer.write_text(json.dumps({"device": "cpu", "rows": []}))
    assert check.main([str(new), f"--recorded={old}"]) == 2
    out = capsys.readouterr().out
    assert out.endswith("\nnot measured anew: predict, movi_c, bfloat16, h100, 1x1, 8\n")
    assert out.count("not measured anew") == 1
    assert check.main([str(new), f"--recorded={old}", "--partial"]) == 0
    assert check.main([str(new), f"--recorded={peer}"]) == 2
    assert "different scripts" in capsys.readouterr().err


@pytest.mark.parametrize(("target", "extra"), [("v5e", "tpu"), ("h100x8", "cuda13")])
def test_a_missing_compiler_is_one_line(target, extra, monkeypatch, capsys):
    found, hidden = importlib.util.find_spec, sum(absent_devices.PLUGINS.values(), ())
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in hidden else found(name)
    )
    monkeypatch.setattr(sys, "argv", ["ahead_of_time.py", f"--target={target}"])
    with pytest.raises(SystemExit, match="2"):
        cases.run(ahead_of_time.main)
    err = capsys.readouterr().err
    assert err.startswith(f"error: --target={target} needs the compiler of ")
    assert err.endswith(f"pip install '.[{extra}]'\n") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--target=v5e-16", "--mesh=1x4"],
            "--mesh=1x4 takes 4 devices of v5e-16; expected one or all 16",
        ),
        (["--target=h100", "--mesh=2x1"], "--mesh=2x1 takes 2 devices of h100; expected one"),
        (["--target=h100x8", "--mesh=4x4"], "16 devices of h100x8; expected 1 to 8"),
        (["--target=h100x8", "--batch=12"], "give a multiple of 8"),
        (["--target=h100x8", "--batch=8", "--config.train.accumulate=4"], "give a multiple of 32"),
        (["--target=v5e", "--batch=0"], "--batch=0 does not divide"),
    ],
)
def test_what_cannot_be_compiled_is_refused(arguments, told, monkeypatch):
    monkeypatch.setattr(absent_devices, "missing_plugin", lambda target: None)
    with pytest.raises(UserError, match=re.escape(told)):
        ahead_of_time.main(arguments)


def test_options_that_are_not_known_are_told(capsys):
    for arguments, told in ((["--target=h200"], "'h200'"), (["--programs=train,test"], "'test'")):
        with pytest.raises(SystemExit, match="2"):
            ahead_of_time.main(["--target=v5e", *arguments])
        assert told in capsys.readouterr().err


def on_a_cpu(shape=(1, 1)) -> Mesh:
    return Mesh(np.array(jax.devices()[:1]).reshape(shape), AXES)


@pytest.mark.slow
def test_all_programs_lower_for_a_tpu_that_is_not_there():
    config = load_config("configs/sprites.py:smoke")
    found = {}
    for call in programs.calls(config, on_a_cpu(), 2, programs.NAMES, Backend("tpu")):
        traced = call.function.trace(*call.arguments)
        found[call.name] = traced.lower(lowering_platforms=("tpu",)).as_text()
    stream = [f"stream: {name}" for name in ("features", "first frame", "later frame")]
    assert list(found) == ["train", "predict", "count", *stream]
    assert all("stablehlo" in text for text in found.values())


def test_a_config_has_the_programs_that_it_uses():
    images = load_config("configs/sprites.py:image")
    names = [call.name for call in programs.calls(images, on_a_cpu(), 2, ["stream"])]
    assert names == ["stream: features", "stream: first frame"]
    recognition = cases.without_weights(load_config("configs/coco.py:recognition"))
    assert programs.names_for(recognition) == ("train", "predict")
    with pytest.raises(UserError, match="has no program 'stream'; it has train, predict"):
        next(programs.calls(recognition, on_a_cpu(), 2, ["train", "stream"]))


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["savi_plus", "views,osrt"])
def test_a_program_gets_all_that_its_task_reads(spec):
    """Flow, depth or cameras, besides pixels."""
    config = load_config(f"configs/scenes.py:{spec},smoke")
    (call,) = programs.calls(config, on_a_cpu(), 2, ("train",))
    state, metrics = call.function.eval_shape(*call.arguments)
    assert "loss" in metrics and state.params.keys() == call.arguments[0].params.keys()


def test_flop_are_counted_with_loops_written_out():
    config = load_config("configs/sprites.py:smoke")
    counted = []
    for frames in (3, 6):
        with config.unlocked():
            config.eval.num_frames = frames
        counted.append(programs.counted_flop(config, 2, ["predict"])["predict"])
    assert 1.8 < counted[1] / counted[0] < 2.2


def test_the_rate_of_products_depends_on_their_precision():
    v5e, h100 = absent_devices.V5E, absent_devices.H100
    assert v5e.flops_of("bfloat16", "highest") == v5e.flops_of("float32", "default") == 197e12
    assert v5e.flops_of("float32", "highest") == 197e12 / 6
    assert h100.flops_of("float32", "default") == h100.flops_of("bfloat16", "default") / 2 - 0.5e12


def test_a_row_names_what_its_config_changes():
    name = lambda config: ahead_of_time.name_of(config, "configs/movi_c.py")  # noqa: E731
    config = load_config("configs/movi_c.py")
    assert name(config) == "movi_c"
    with config.unlocked():
        config.dtype, config.weights.encoder.source = "bfloat16", "random"
        config.train.scan_unroll, config.model.encoder.depth = 5, 1
    assert name(config) == "movi_c model.encoder.depth=1 train.scan_unroll=5"


def test_rows_are_recorded_in_place_of_the_same(tmp_path):
    path = tmp_path / "recorded.json"
    ahead_of_time.record([row(), row(program="predict")], path)
    ahead_of_time.record([row(moved_gb=7.0), row(config="coco")], path)
    found = json.loads(path.read_text())
    assert found["figures"] == "compiled, not run"
    keys = [(x["program"], x["config"], x["moved_gb"]) for x in found["rows"]]
    assert keys == [("predict", "movi_c", 10.0), ("train", "coco", 10.0), ("train", "movi_c", 7.0)]


def test_check_says_when_compilers_differ(tmp_path, capsys):
    new, old = tmp_path / "new.json", tmp_path / "old.json"
    flags = {"xla_flags": "--xla_one=1"}
    old.write_text(ahead_of_time.written([row(versions={"jax": "0.10.2"}, xla_flags="")]))
    new.write_text(ahead_of_time.written([row(versions={"jax": "0.12.0", "jaxlib": "1"}, **flags)]))
    assert check.main([str(new), f"--recorded={old}"]) == 0
    out = capsys.readouterr().out
    assert "compiled differently, jax: recorded 0.10.2, new 0.12.0 (1 programs)\n" in out
    assert "XLA_FLAGS: recorded none, new --xla_one=1" in out and "jaxlib" not in out
    assert check.main([str(old), f"--recorded={old}"]) == 0
    assert "differently" not in capsys.readouterr().out


def has(target: str) -> bool:
    return absent_devices.missing_plugin(target) is None


def command(*arguments: str) -> subprocess.CompletedProcess:
    own = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    script = [sys.executable, "benchmarks/ahead_of_time.py", *arguments]
    return subprocess.run(script, cwd=ROOT, env=own, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(has("h100"), reason="the CUDA plugin is installed")
def test_the_script_says_what_to_install():
    found = command("--target=h100", "--config=configs/movi_c.py")
    assert found.returncode == 2 and found.stderr.startswith("error: --target=h100 needs")


def test_the_environment_is_set_for_the_target_only(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    for name in absent_devices.ENVIRONMENT:
        monkeypatch.setenv(name, "as it was")
    for target in ("v5e", None):
        absent_devices.prepare(target)
    assert "XLA_FLAGS" not in os.environ and os.environ["JAX_PLATFORMS"] == "as it was"
    absent_devices.prepare("h100")
    assert os.environ.pop("XLA_FLAGS") == absent_devices.GPU_FLAGS


def test_the_target_is_read_before_jax_starts():
    read = absent_devices.target_of
    assert read(["--target", "h100", "--config=x"]) == read(["--top=3", "--target=h100"]) == "h100"
    assert read([]) is read(["--target"]) is read(["--target=h200", "--json"]) is None


LOWER = """
import sys
sys.path[:0] = ["tests", "."]
from benchmarks import absent_devices
absent_devices.prepare("h100")
import jax
from recipes import recipe
from benchmarks.programs import calls
mesh = absent_devices.mesh_of("h100", (1, 1))
for name in sys.argv[1:]:
    for call in calls(recipe(name), mesh, 2, ("train", "predict")):
        text = call.function.lower(*call.arguments).as_text()
        print(name, call.name, text.count("__cudnn$fmhaSoftmax"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not has("h100"), reason="needs the CUDA plugin: pip install '.[cuda13]'")
def test_every_recipe_lowers_for_an_h100_with_cudnn():
    names = recipes()
    found = subprocess.run(
        [sys.executable, "-c", LOWER, *names], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-2000:]
    counts = dict(line.rsplit(maxsplit=1) for line in found.stdout.splitlines())
    assert len(counts) == 2 * len(names)
    assert all(int(count) >= 1 for count in counts.values())  # the encoder at least


@pytest.mark.slow
@pytest.mark.skipif(not has("v5e"), reason="needs libtpu: pip install '.[tpu]'")
def test_movi_c_compiles_for_a_v5e(tmp_path):
    file = tmp_path / "rows.json"
    small = ("--config.model.encoder.depth=1", "--batch=2", "--programs=train", f"--json={file}")
    found = command("--target=v5e", "--config=configs/movi_c.py", "--config.dtype=bfloat16", *small)
    assert found.returncode == 0, found.stderr[-2000:]
    (plan,) = json.loads(file.read_text())["rows"]
    assert 0.1 < plan["peak_gb"] < 16 and plan["tflop"] > 0.05 and plan["ms_estimated"] > 0.1
    assert "compiled, not run" in found.stdout
