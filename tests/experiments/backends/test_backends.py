"""Backends: what they find in pictures of heads, what they say when nothing is there, and head pose from landmarks."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from memcomp.experiments.backends.base import NotFound, Unavailable
from memcomp.experiments.backends.choose import CHOICES, CLASSES, create_backend, read_choices
from memcomp.experiments.backends.face_points import FACE_POINTS
from memcomp.experiments.backends.head_pose import head_pose
from memcomp.experiments.data.heads import Identity, Poses, landmarks, render
from memcomp.experiments.errors import UserError


def picture(size=256, **pose):
    """A head that dlib finds, (size, size, 3) uint8."""
    image = render(Identity.sample(5003), Poses.make(**pose), size).image[0]
    return (image * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


@pytest.fixture(scope="module")
def pictures():
    """One head, the same turned, nobody, and two heads side by side."""
    one, turned = picture(), picture(yaw=15.0, mouth=0.4)
    return [one, turned, np.full_like(one, 128), np.concatenate([one, one], axis=1)]


@pytest.mark.parametrize("kind", ["landmarks", "identity", "pose"])
def test_dlib_reads_one_face_and_names_none_and_two(pictures, kind):
    pytest.importorskip("dlib")
    backend = create_backend(kind, read_choices([]))
    assert "dlib-bin" in backend.about
    first, second, none, two = backend(pictures)
    assert (none, two) == (NotFound("no face"), NotFound("2 faces"))
    assert first.shape == {"landmarks": (68, 2), "identity": (128,), "pose": (3,)}[kind]
    assert first.dtype == np.float64
    alone = backend(pictures[1:2])[0]
    assert np.allclose(alone, second, atol=1e-6)  # whatever the others in the list
    if kind == "landmarks":
        exact = landmarks(Identity.sample(5003), Poses.make()).points[0].numpy() * 128 + 127.5
        assert np.median(np.linalg.norm(first - exact, axis=1)[27:]) < 4
    if kind == "identity":
        assert np.linalg.norm(first - second) < 0.6
    if kind == "pose":
        assert abs(first[0]) < 8 and abs(second[0] - first[0] - 15) < 6


def test_landmarks_of_small_pictures_are_in_their_own_pixels():
    pytest.importorskip("dlib")
    backend = create_backend("landmarks", read_choices([]))
    small, large = backend([picture(96), picture(288)])
    inner = np.linalg.norm((large + 0.5) / 3 - 0.5 - small, axis=1)[17:]  # the jaw is anyone's guess
    assert np.median(inner) < 1.5


def test_head_pose_follows_exact_landmarks_over_120_degrees_of_yaw():
    true, solved = [], []
    for person in range(12):
        table = Poses.trajectory(9000 + person, 200)[torch.tensor([17, 60, 123, 180])].as_tensor()
        table[:, 0] = torch.tensor([-58.0, -25, 20, 55]) + person / 2
        poses = Poses.from_tensor(table)
        true.append(poses.angles().numpy())
        solved += [head_pose(points) for points in landmarks(Identity.sample(5000 + person), poses, 64).points.numpy()]
    true, solved = np.concatenate(true), np.array(solved)
    correlation = [np.corrcoef(true[:, k], solved[:, k])[0, 1] for k in range(3)]
    assert correlation[0] > 0.99 and min(correlation) > 0.9
    assert np.abs(true - solved).mean(axis=0).max() < 4


def test_head_pose_has_our_signs_and_ignores_place_and_size():
    who = Identity.sample(5003)
    for index, pose in enumerate(({"yaw": 30.0}, {"pitch": 20.0}, {"roll": 20.0})):
        points = landmarks(who, Poses.make(**pose), 64).points[0].numpy()
        solved, neutral = head_pose(points), head_pose(landmarks(who, Poses.make(), 64).points[0].numpy())
        moved = solved - neutral
        assert moved[index] == pytest.approx(next(iter(pose.values())), abs=3)
        assert np.abs(np.delete(moved, index)).max() < 3
        assert np.allclose(head_pose(points * 100 + 37), solved, atol=1e-6)
    for bad in (np.zeros((68, 2)), np.zeros((5, 2)), np.full((68, 2), np.nan)):
        with pytest.raises(ValueError, match="a head pose needs"):
            head_pose(bad)


def test_the_generic_face_is_the_mean_of_the_heads():
    from memcomp.experiments.data.heads.anchors import landmark_anchors
    from memcomp.experiments.data.heads.mesh import build

    people = [Identity.sample(i) for i in range(20)]
    mean = torch.stack([landmark_anchors(w, 1.0)[0].on(build(w, 1.0).rest[None])[0] for w in people]).mean(0)
    assert np.allclose(mean.numpy(), FACE_POINTS, atol=1.1e-3)


def test_choices():
    assert read_choices([]) == {key: default for key, (default, _) in CHOICES.items()}
    assert read_choices(["identity=arcface:a/b.pth", "pose=py-feat"])["identity"] == "arcface:a/b.pth"
    for words, message in (
        (["landmark=dlib"], "did you mean landmarks"),
        (["landmarks"], "expected landmarks=VALUE"),
        (["nothing=1"], "did you mean landmarks, identity"),
    ):
        with pytest.raises(UserError, match=message):
            read_choices(words)
    for word in ("identity=openface", "identity=dlib:file", "landmarks=mtcnn", "action_units=dlib"):
        kind = word.partition("=")[0]
        with pytest.raises(UserError, match=f"--backend {word}: expected"):
            create_backend(kind, read_choices([word]))


def test_a_missing_package_names_its_extra(monkeypatch):
    for module, kind, word, needs in (
        ("dlib", "landmarks", "landmarks=dlib", "memcomp[faces]"),
        ("dlib", "identity", "identity=dlib", "memcomp[faces]"),
        ("dlib", "heads", "heads=dlib", "memcomp[faces]"),
        ("face_alignment", "landmarks", "landmarks=face-alignment", "memcomp[alignment]"),
        ("feat", "action_units", "action_units=py-feat", "memcomp[feat]"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(Unavailable, match="pip install") as error:
            create_backend(kind, read_choices([word]))
        assert error.value.needs == needs
        monkeypatch.undo()
    assert {name for kind in CLASSES for name in CLASSES[kind]} >= {"dlib", "face-alignment", "py-feat"}


@pytest.mark.parametrize(("name", "size"), [("openface", 128), ("arcface", 512)])
def test_identity_networks_from_files(name, size, tmp_path):
    from memcomp.experiments.backends.arcface import ArcFaceNetwork
    from memcomp.experiments.backends.openface import OpenFaceNetwork

    torch.manual_seed(0)
    network = {"openface": OpenFaceNetwork, "arcface": ArcFaceNetwork}[name]()
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    file = tmp_path / "weights.pth"
    torch.save(state, file)
    backend = create_backend("identity", read_choices([f"identity={name}:{file}"]))
    assert "weights.pth" in backend.about
    image = picture(64)
    first, second = backend([image, image[:, ::-1].copy()])
    assert first.shape == (size,) and not np.allclose(first, second)
    assert np.array_equal(first, backend([image])[0])
    if name == "openface":
        assert np.linalg.norm(first) == pytest.approx(1, abs=1e-3)
    key = "module.layer25.weight" if name == "openface" else "module.fc5.weight"
    torch.save({k: v for k, v in state.items() if k != key}, file)
    with pytest.raises(UserError, match=f"{key[7:]} is missing, expected"):
        create_backend("identity", read_choices([f"identity={name}:{file}"]))
    file.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"weights.pth: expected a checkpoint, found a text file"):
        create_backend("identity", read_choices([f"identity={name}:{file}"]))
    with pytest.raises(Unavailable, match="found none") as error:
        create_backend("identity", read_choices([f"identity={name}:{tmp_path / 'gone.pth'}"]))
    assert error.value.needs == "gone.pth"


def test_openface_sees_blue_green_red_at_96_pixels(tmp_path, monkeypatch):
    from memcomp.experiments.backends import openface

    torch.save(openface.OpenFaceNetwork().state_dict(), tmp_path / "o.pth")
    backend = openface.OpenFace(tmp_path / "o.pth")
    seen = []
    monkeypatch.setattr(backend, "_network", lambda image: (seen.append(image), torch.zeros(1, 128))[1])
    red = np.zeros((192, 192, 3), np.uint8)
    red[..., 0] = 255
    backend([red])
    assert seen[0].shape == (1, 3, 96, 96)
    assert seen[0].mean(dim=(0, 2, 3)).tolist() == pytest.approx([0, 0, 1], abs=1e-6)


def fake_alignment(faces):
    """A module with face-alignment's interface, in the names of version 1.4 and later."""
    module = ModuleType("face_alignment")
    module.LandmarksType = SimpleNamespace(TWO_D=1)
    module.FaceAlignment = lambda kind, flip_input, device: SimpleNamespace(get_landmarks_from_image=faces)
    return module


def test_face_alignment_through_its_interface(monkeypatch):
    points = np.arange(136, dtype=np.float32).reshape(68, 2)
    answers = iter([None, [points], [points, points]])
    monkeypatch.setitem(sys.modules, "face_alignment", fake_alignment(lambda image: next(answers)))
    backend = create_backend("landmarks", read_choices(["landmarks=face-alignment"]))
    none, one, two = backend([picture(64)] * 3)
    assert (none, two) == (NotFound("no face"), NotFound("2 faces"))
    assert np.array_equal(one, points) and one.dtype == np.float64

    def offline(kind, flip_input, device):
        raise OSError("Name or service not known")

    sys.modules["face_alignment"].FaceAlignment = offline
    with pytest.raises(Unavailable, match="could not fetch its networks") as error:
        create_backend("landmarks", read_choices(["landmarks=face-alignment"]))
    assert error.value.needs == "networks of face-alignment"


class Table(dict):
    """As much of a data frame as the backend uses: columns by name or by a list of names."""

    def __getitem__(self, names):
        return np.stack([dict.__getitem__(self, name) for name in names], 1)


def test_py_feat_through_its_interface(monkeypatch):
    nan = float("nan")
    faces = {
        "one": SimpleNamespace(aus=[[0.1, 0.9]], poses=Table(Pitch=[1.0], Roll=[2.0], Yaw=[3.0])),
        "none": SimpleNamespace(aus=[[nan, nan]], poses=Table(Pitch=[nan], Roll=[nan], Yaw=[nan])),
    }
    seen = []

    class Detector:
        def __init__(self, device):
            assert device == "cpu"

        def detect(self, inputs, data_type, progress_bar):
            seen.append((inputs.shape, inputs.dtype, data_type))
            return faces["one" if len(seen) % 2 else "none"]

    module = ModuleType("feat")
    module.Detectorv1 = Detector
    monkeypatch.setitem(sys.modules, "feat", module)
    units, none = create_backend("action_units", read_choices([]))([picture(64)] * 2)
    assert units.tolist() == [0.1, 0.9] and none == NotFound("no face")
    pose, _ = create_backend("pose", read_choices(["pose=py-feat"]))([picture(64)] * 2)
    assert pose.tolist() == pytest.approx(np.degrees([3.0, 1.0, 2.0]))  # yaw, pitch, roll
    assert seen[0] == ((1, 3, 64, 64), torch.uint8, "tensor")
    del module.Detectorv1
    with pytest.raises(Unavailable, match="expected version 2"):
        create_backend("action_units", read_choices([]))
