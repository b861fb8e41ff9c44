from dataclasses import replace

from training_fixtures import make_cases


def test_a_repr_names_no_file(tmp_path):
    (case,) = make_cases(tmp_path / "Doe^Jane", ["a"])
    assert "Doe" not in repr(case) and case.key in repr(case)


def test_the_content_digest_tells_pairs_from_their_parts(tmp_path):
    one, two = make_cases(tmp_path, ["a", "b"])
    digests = {
        one.content_digest(),
        two.content_digest(),
        replace(one, poor_files=two.files).content_digest(),
        replace(two, poor_files=one.files).content_digest(),
        replace(one, files=one.files + two.files).content_digest(),
    }
    assert len(digests) == 5
