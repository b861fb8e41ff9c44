from collections import Counter
from functools import cached_property
from types import SimpleNamespace

import numpy as np
import pytest
from training_fixtures import prepare

from bundle.data.archives import Found
from bundle.data.joining import FixedParts, StreamedParts
from bundle.data.patches import MEASURING, PatchDataset
from bundle.data.splits import Part, Split
from bundle.errors import BundleError


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("cases"), [f"c{n}" for n in range(6)], size=16, slices=4, realisations=0)


class Stream:
    """Archives of the given cases: none, one or several in each; notes which were asked for."""

    def __init__(self, archives, *, epochs=1.0, validation=()):
        self.archives, self.epochs = archives, epochs
        self.training = tuple(SimpleNamespace(path=f"p{number}") for number in range(len(archives)))
        self.preparation = SimpleNamespace(repository=SimpleNamespace(revision="a" * 40))
        self.validation = validation
        self.waited = []

    @cached_property
    def initial(self):
        return Split((), tuple(Part.whole(case) for case in self.validation), "")

    def wait(self, archive):
        number = self.training.index(archive)
        self.waited.append(number)
        return Found(tuple(self.archives[number]))


def keys(source, epochs, *, count=400, seed=0):
    return [source.draw(np.random.default_rng([seed, n]), epochs).case.key for n in range(count)]


def test_long_series_are_drawn_more_often_but_not_in_proportion(cases):
    source = FixedParts([Part(cases[0], 0, 1), Part(cases[1], 0, 4)])
    drawn = Counter(keys(source, 0, count=6000))
    assert drawn[cases[1].key] / drawn[cases[0].key] == pytest.approx(2, abs=0.2)
    assert keys(source, 0) == keys(source, 7.5)


@pytest.mark.parametrize("epochs", [0.5, 1.0, 3.0])
def test_archives_join_evenly_and_never_leave(cases, epochs):
    source = StreamedParts(Stream([[case] for case in cases], epochs=epochs))
    joined = [source.joined(passed) for passed in np.linspace(0, 2 * epochs, 201)]
    assert joined[0] == 1 and joined[-1] == joined[100] == len(cases)
    assert np.all(np.diff(joined) >= 0) and np.all(np.diff(joined) <= 1)
    at = [next(n for n, value in enumerate(joined) if value == number) for number in range(2, len(cases) + 1)]
    assert np.abs(np.diff([0, *at]) - 20).max() <= 1  # a step of the grid, by rounding
    assert StreamedParts(Stream([[case] for case in cases], epochs=0)).joined(0.0) == len(cases)


def test_only_what_has_joined_is_drawn_and_waited_for(cases):
    stream = Stream([[case] for case in cases])
    source = StreamedParts(stream)
    assert set(keys(source, 0.0)) == {cases[0].key} and set(stream.waited) == {0}
    assert set(keys(source, 0.5)) == {case.key for case in cases[:3]} and set(stream.waited) == {0, 1, 2}
    drawn = Counter(keys(source, 1.0, count=3000))
    assert set(drawn) == {case.key for case in cases} and max(drawn.values()) < 1.3 * min(drawn.values())


def test_samples_do_not_depend_on_what_was_drawn_before(cases):
    archives = [[], [cases[0]], [cases[1], cases[2]], [], [cases[3]], [cases[4], cases[5]]]
    forwards, backwards = (StreamedParts(Stream(archives)) for _ in range(2))
    moments = np.linspace(0, 1.5, 60)
    drawn = [forwards.draw(np.random.default_rng([3, n]), passed).case.key for n, passed in enumerate(moments)]
    again = [
        backwards.draw(np.random.default_rng([3, n]), passed).case.key
        for n, passed in reversed(list(enumerate(moments)))
    ]
    assert drawn == again[::-1] and len(set(drawn)) > 3


def test_archives_that_hold_nothing_are_passed_over(cases):
    stream = Stream([[], [], [cases[0]], [], [cases[1]], []])
    source = StreamedParts(stream)
    assert source.joined(0.0) == 3 and set(keys(source, 0.0)) == {cases[0].key}
    assert set(keys(source, 1.0)) == {cases[0].key, cases[1].key}
    with pytest.raises(BundleError, match="no series of the archives is large or thin enough"):
        keys(StreamedParts(Stream([[], [cases[0]]]), usable=lambda part: False), 0.0)


def test_what_cannot_be_used_is_as_if_it_were_not_there(cases):
    stream = Stream([[cases[0]], [cases[1], cases[2]]])
    source = StreamedParts(stream, usable=lambda part: part.case.key != cases[0].key)
    assert set(keys(source, 0.0)) == {cases[1].key, cases[2].key}


def test_a_series_that_validates_is_not_trained_on_where_it_lies_in_another_archive_too(cases):
    stream = Stream([[cases[0], cases[1]], [cases[2]]], validation=[cases[1]])
    assert set(keys(StreamedParts(stream), 1.0)) == {cases[0].key, cases[2].key}


def test_identity_tells_archives_and_pace_apart(cases):
    def identity(archives, **settings):
        return StreamedParts(Stream(archives, **settings)).identity

    first = identity([[cases[0]], [cases[1]]])
    assert first == identity([[cases[0]], []]), "it is known before they come"
    assert len({first, identity([[cases[0]]]), identity([[cases[0]], [cases[1]]], epochs=2.0)}) == 3
    parts = [Part.whole(case) for case in cases]
    assert FixedParts(parts).identity != FixedParts(parts[:5]).identity


def test_the_latent_is_measured_on_what_there_is_at_the_start_of_an_epoch(cases):
    stream = Stream([[case] for case in cases])
    data = PatchDataset(StreamedParts(stream), patch_size=8, num_slices=2, length=100, seed=0)
    assert {data.series_key((MEASURING, n)) for n in range(50)} == {cases[0].key}
    assert stream.waited == [0]
    assert {data.series_key((MEASURING + 1, n)) for n in range(50)} == {case.key for case in cases}
    assert {data.series_key((0, n)) for n in range(50)} == {case.key for case in cases[:3]}
