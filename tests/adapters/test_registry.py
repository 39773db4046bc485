"""Hosts that installed packages bring: their layout, their checkpoints and their model are theirs to say."""

import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from memcomp import CompensationConfig, Handle
from memcomp.adapters import attach, create_host, list_hosts, registry
from memcomp.adapters.layout import in_order
from memcomp.adapters.mcnet.generator import UNetGenerator
from memcomp.adapters.shared.warped_skip import inplace_taps
from memcomp.adapters.upstream.checkpoint import build, read_checkpoint, recognise

MEMORY = CompensationConfig.paper(memory_channels=8, memory_size=(4, 4), start="identity")
GUEST = """
import re
from torch import nn
from memcomp import KeypointTap, Tap
from memcomp.adapters import Host, HostOutput, Keypoints, Layout

class Painter(nn.Module):  # as its upstream wrote it
    def __init__(self, width, pairs):
        super().__init__()
        self.pairs, self.look, self.paint = pairs, nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1)
    def forward(self, source, points):
        return self.paint(self.look(source))

class Guest(Host):
    name = "guest"
    generator_section = "painter"
    published = {"width": 4, "pairs": 2, "mood": "calm"}
    layouts = (
        Layout(
            name="Guest's painter",
            section="painter",
            parts=frozenset({"look", "paint"}),
            taps=lambda root: [Tap("paint")],
            keypoints=KeypointTap("", "points", key=None),
            count=("pairs", 2),
        ),
    )
    section_files = {"finder": re.compile(r"found\\..+")}
    not_weights = {"licence": "its licence"}
    def __init__(self, model):
        super().__init__(model)
        self.painter, self.finder = Painter(model["width"], model["pairs"]), nn.ModuleDict({"found": nn.Linear(2, 2)})
    @staticmethod
    def read_model(sections, published):
        return {"width": len(sections["painter"]["look.weight"])}
    def sections(self):
        return {"painter": self.painter, "finder": self.finder}
    def keypoints(self, image):
        return Keypoints(image.new_zeros(len(image), 4, 2))
    def generate(self, source, kp_source, kp_driving):
        return HostOutput(self.painter(source, kp_source.value), source, None, None, None, None, kp_source, kp_driving)
    def transfer_motion(self, kp_source, kp_driving, kp_driving_initial, **options):
        return kp_driving

class Still(Guest):
    name = "still"
    layouts = ()
    @classmethod
    def recognise(cls, sections):
        return 100 if "frozen" in sections else 0
"""


@pytest.fixture
def guests(tmp_path, monkeypatch):
    """The module of an installed package with two hosts and two entry points that lead nowhere."""
    (tmp_path / "painter_hosts.py").write_text(GUEST)
    info = tmp_path / "painter_hosts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: painter-hosts\nVersion: 1.0\n")
    points = {"guest": "painter_hosts:Guest", "still": "painter_hosts:Still", "gone": "no_such:Host", "not": "os:sep"}
    (info / "entry_points.txt").write_text("[memcomp.hosts]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    monkeypatch.setattr(registry, "_HOSTS", dict(registry._HOSTS))
    monkeypatch.syspath_prepend(tmp_path)
    import painter_hosts

    yield painter_hosts
    del sys.modules["painter_hosts"]


def host_of(guests, width=6):
    torch.manual_seed(0)
    return guests.Guest({"width": width, "pairs": 2, "mood": "gay"})


def left_out():
    """What is said of the two entry points."""
    return pytest.warns(UserWarning, match="left out: entry point '(gone|not)' of memcomp.hosts")


def test_attach_recognises_its_upstreams_generator(guests):
    assert {"guest", "still", "gone", "fomm"} <= set(list_hosts())
    with left_out() as warned:
        handle = attach(guests.Painter(6, pairs=3), MEMORY)
    said = "\n".join(str(warning.message) for warning in warned)
    assert "'gone' of memcomp.hosts cannot be loaded: ModuleNotFoundError: No module named 'no_such'" in said
    assert "'not' of memcomp.hosts must name a subclass of Host" in said
    assert (handle.compensation.channels, handle.compensation.keypoints) == ((6,), 6)
    handle.root(torch.rand(1, 3, 8, 8), torch.rand(1, 6, 2))
    with left_out():
        assert Handle.of(attach({"painter": (painter := guests.Painter(6, pairs=3))}, MEMORY).root).root is painter
    with (
        left_out(),
        pytest.raises(ValueError, match=r"not a generator known here.*Guest's painter \(section 'painter'"),
    ):
        attach(nn.Sequential(nn.Conv2d(3, 3, 1)))


def test_attach_asks_a_host_for_its_own_layout_only(guests, recwarn):
    host = host_of(guests)
    handle = attach(host, MEMORY)
    assert handle.compensation.keypoints == 4 and not recwarn.list
    handle.remove()
    with left_out(), pytest.raises(ValueError, match=r"for generators that .*FOMM; not for Guest's painter"):
        attach(host, MEMORY, mode="skip")


def test_a_host_without_taps_takes_no_memory(guests):
    with pytest.raises(ValueError, match="the host 'still' takes no memory: it names no taps"):
        attach(guests.Still(guests.Guest.published))


def test_its_checkpoint_is_recognised_and_its_model_read(guests, tmp_path):
    host = host_of(guests)
    sections = {name: dict(state, licence="free") for name, state in host.upstream_sections().items()}
    torch.save({"painter": sections["painter"], "epoch": 2}, tmp_path / "painter.pth")
    torch.save(host.upstream_sections()["finder"], tmp_path / "finder.pth")
    with left_out():
        read = read_checkpoint(tmp_path / "painter.pth", tmp_path / "finder.pth")
    assert read.dropped["painter.licence"] == "its licence" and read.sections.keys() == {"painter", "finder"}
    with left_out():
        found = recognise(read.sections)
    assert (found.host, found.model) == ("guest", {"width": 6, "pairs": 2, "mood": "calm"})
    assert found.assumed == ("mood", "pairs") and found.overruled == ()
    with left_out():
        given = recognise(read.sections, "guest", {"width": 5, "pairs": 3})
    assert given.model == {"width": 6, "pairs": 3} and given.overruled == ("width",)
    again = build(read, found)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in host.state_dict().items())


def test_a_host_may_know_its_checkpoints_by_other_means_than_a_layout(guests):
    sections = {**host_of(guests).upstream_sections(), "frozen": {}}
    with left_out():
        assert recognise(sections).host == "still"
    with left_out(), pytest.raises(ValueError, match="expected a checkpoint of guest, but it looks like still's"):
        recognise(sections, "guest")


def test_an_entry_point_that_leads_nowhere_is_named(guests):
    with pytest.raises(ValueError, match=r"entry point 'gone' of memcomp\.hosts cannot be loaded: ModuleNotFoundError"):
        create_host("gone", {})


def test_what_has_more_parts_is_tried_first(guests):
    classes = [registry.host_class(name) for name in registry.BUILT_IN]
    layouts = [layout.name for layout in in_order(layout for host in classes for layout in host.layouts)]
    order = [layouts.index(name) for name in ("DaGAN", "DaGAN (SPADE)", "FOMM")]
    assert order == sorted(order) and layouts.index("MCNet") < layouts.index("TPSM")


def test_an_empty_part_counts_for_nothing():
    """Upstream's generator of MCNet has FOMM's bottleneck, without a layer in it."""
    widths = {"block_expansion": 4, "max_features": 32, "num_down_blocks": 3}
    motion = {"block_expansion": 4, "max_features": 8, "num_blocks": 1, "scale_factor": 1}
    generator = UNetGenerator(num_channels=3, num_kp=3, **widths, dense_motion_params=motion)
    generator.bottleneck = nn.Sequential()
    assert attach(generator, MEMORY).taps == tuple(inplace_taps(generator))


def test_the_package_imports_a_host_when_it_is_asked_for():
    code = """
import sys, memcomp.adapters as adapters
print([name for name in sys.modules if name.startswith(("memcomp.adapters.", "torch"))])
assert set(adapters.__all__) <= set(dir(adapters)) and {"pretrained", "fomm", "attachment"} <= set(dir(adapters))
from memcomp.adapters import FOMM
print([room for room in ("fomm", "tpsm", "dagan", "mcnet") if f"memcomp.adapters.{room}" in sys.modules])
import memcomp.adapters.attachment.attach
from memcomp.adapters import *
assert attach is adapters.attach is memcomp.adapters.attachment.attach.attach and create_host("tpsm", TPSM.published)
assert adapters.upstream.checkpoint.read_checkpoint and not hasattr(adapters, "fom")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert second == "['fomm']" and (first == "[]" or "memcomp.adapters.fomm" not in first)


def test_every_exported_name_is_at_home():
    import memcomp.adapters as adapters

    for name in adapters.__all__:
        value = getattr(adapters, name)
        assert not isinstance(value, ModuleType) and value.__name__ == name
    with pytest.raises(AttributeError, match=r"module 'memcomp\.adapters' has no attribute 'fom'"):
        adapters.fom  # noqa: B018
