import argparse

from script_modules import load_script

bench = load_script("bench_train")


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
