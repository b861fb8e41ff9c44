import pytest

from bundle.errors import BundleError
from bundle.training.limits import require_both_or_none, require_ranges


def test_what_is_usual_passes():
    assert require_ranges(learning_rate=1.0e-4, batch_size=2, ema_decay=0.998, warmup_steps=0, seed=0, final_rate=0.03)


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("learning_rate", 0.0, "learning_rate must be a number from 1e-09 to 0.01, not 0.0"),
        ("learning_rate", 1.0, "learning_rate must be"),
        ("learning_rate", float("nan"), "learning_rate must be"),
        ("learning_rate", "1e-4", "learning_rate must be"),
        ("batch_size", 0, "batch_size must be a whole number from 1 to 4096, not 0"),
        ("batch_size", 1.5, "batch_size must be a whole number"),
        ("batch_size", True, "batch_size must be a whole number"),
        ("num_slices", -1, "num_slices must be"),
        ("keep_checkpoints", 0, "keep_checkpoints must be"),
        ("ema_decay", 1.0, "ema_decay must be"),
    ],
)
def test_the_key_and_its_range_are_named(key, value, message):
    with pytest.raises(BundleError) as caught:
        require_ranges(**{key: value})
    assert message in str(caught.value)


def test_keys_that_belong_together():
    assert require_both_or_none(num_steps=None, phase1_steps=None) and require_both_or_none(num_steps=4, phase1_steps=0)
    with pytest.raises(BundleError, match="num_steps is set without phase1_steps"):
        require_both_or_none(num_steps=4, phase1_steps=None)
