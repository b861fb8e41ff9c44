import argparse
import importlib.util
from pathlib import Path

SPEC = importlib.util.spec_from_file_location(
    "bench_train", Path(__file__).resolve().parents[2] / "scripts" / "bench_train.py"
)
bench = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bench)


def test_ours_and_the_bare_loop_take_turns_on_equal_networks():
    options = argparse.Namespace(
        preset="tiny", device="cpu", mixed_precision="off", patch_size=16, num_slices=2, batch_size=2, steps=3
    )
    found = bench.overhead(options)
    assert found["ours_s"] > 0 and found["bare_s"] > 0
    trainer = bench.make_trainer(options, 2)
    before = {name: value.clone() for name, value in trainer.restorer.state_dict().items()}
    bench.bare_step(trainer)()
    assert all(value.equal(before[name]) for name, value in trainer.restorer.state_dict().items())


def test_memory_of_this_process():
    assert 0 < bench.resident("VmRSS") <= bench.resident("VmHWM")
