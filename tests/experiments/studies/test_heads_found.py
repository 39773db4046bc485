"""An ordinary face detector takes the heads for faces."""

import pytest

pytest.importorskip("dlib")
pytest.importorskip("face_recognition_models")


def test_dlib_finds_most_faces_where_we_say_they_are():
    from memcomp.experiments.studies.heads_found import measure

    shares, errors = measure(12)
    assert shares[0] >= 0.8
    assert errors["eyes"] < 6 and errors["nose"] < 6 and errors["mouth"] < 8
