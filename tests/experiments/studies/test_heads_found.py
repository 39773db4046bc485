"""An ordinary face detector takes the heads for faces."""

from importlib.util import find_spec

import pytest

pytest.importorskip("dlib")
if find_spec("face_recognition_models") is None:  # not imported: it needs pkg_resources for that
    pytest.skip("face_recognition_models is missing: pip install 'memcomp[faces]'", allow_module_level=True)


def test_dlib_finds_most_faces_where_we_say_they_are():
    from memcomp.experiments.studies.heads_found import measure

    shares, errors = measure(12)
    assert shares[0] >= 0.8
    assert errors["eyes"] < 6 and errors["nose"] < 6 and errors["mouth"] < 8
