"""Checkpoints of the upstream projects: recognised from their weights, read safely, and the same to upstream's code.

Tests marked `upstream` write a checkpoint of ours, load it as upstream's own demo does and compare pictures, and the
other way round, with unmodified upstream code in the folder MEMCOMP_UPSTREAM.
"""

import contextlib
import copy
import decimal
import os
import re
import subprocess
import sys
from types import ModuleType
from unittest import mock

import pytest
import torch

from memcomp import CompensationConfig
from memcomp.adapters import Host, attach, create_host, registry
from memcomp.adapters.registry import host_class
from memcomp.adapters.upstream.checkpoint import Checkpoint, build, read_checkpoint, recognise

NARROW = {"block_expansion": 4, "max_features": 16, "num_blocks": 3, "scale_factor": 0.5}
FOMM = {
    "common_params": {"num_kp": 3, "num_channels": 3, "estimate_jacobian": True},
    "kp_detector_params": {**NARROW, "temperature": 0.1, "max_features": 8},
    "generator_params": {
        **{"block_expansion": 6, "max_features": 18, "num_down_blocks": 2, "num_bottleneck_blocks": 3},
        "estimate_occlusion_map": True,
        "dense_motion_params": NARROW,
    },
    "discriminator_params": {"scales": [1], "block_expansion": 4, "max_features": 12, "num_blocks": 3, "sn": True},
}
DAGAN = {**FOMM, "generator": "DepthAwareGenerator", "depth": {"num_layers": 18}}
TPSM = {
    "common_params": {"num_tps": 4, "num_channels": 3, "bg": True, "multi_mask": True},
    "generator_params": {"block_expansion": 4, "max_features": 16, "num_down_blocks": 3},
    "dense_motion_params": {"block_expansion": 4, "max_features": 16, "num_blocks": 3, "scale_factor": 0.25},
    "avd_network_params": {"id_bottle_size": 5, "pose_bottle_size": 6},
}
MRAA = {
    **{"num_regions": 3, "num_channels": 3, "estimate_affine": True, "revert_axis_swap": True},
    "bg_predictor_params": {"block_expansion": 4, "max_features": 12, "num_blocks": 3, "bg_type": "affine"},
    "region_predictor_params": {**NARROW, "temperature": 0.1, "max_features": 8, "pca_based": True, "fast_svd": False},
    "generator_params": {
        **{"block_expansion": 6, "max_features": 18, "num_down_blocks": 2, "num_bottleneck_blocks": 3, "skips": True},
        "pixelwise_flow_predictor_params": {
            **NARROW,
            **{"use_deformed_source": True, "use_covar_heatmap": True, "estimate_occlusion_map": True},
        },
    },
    "avd_network_params": {"id_bottle_size": 5, "pose_bottle_size": 6},
}
FACEVID2VID = {
    "common_params": {"num_kp": 3, "image_channel": 3, "feature_channel": 6, "estimate_jacobian": False},
    "kp_detector_params": {
        **{"temperature": 0.1, "block_expansion": 4, "max_features": 12, "scale_factor": 0.5, "num_blocks": 2},
        **{"reshape_channel": 36, "reshape_depth": 3},
    },
    "he_estimator_params": {"block_expansion": 4, "max_features": 2048, "num_bins": 66, "widths": [8, 12, 16, 20]},
    "generator_params": {
        **{"block_expansion": 6, "max_features": 18, "num_down_blocks": 2, "reshape_channel": 6, "reshape_depth": 3},
        **{"num_resblocks": 2, "estimate_occlusion_map": True},
        "dense_motion_params": {
            **{"block_expansion": 4, "max_features": 12, "num_blocks": 2, "reshape_depth": 3, "compress": 2},
        },
    },
    "discriminator_params": {"scales": [1], "block_expansion": 4, "max_features": 12, "num_blocks": 3, "sn": True},
    "generator": "original",
}
FLOW = "generator_params__pixelwise_flow_predictor_params"
MCNET = {
    **FOMM,
    "generator_params": {
        **{"block_expansion": 4, "max_features": 32, "num_down_blocks": 3, "num_bottleneck_blocks": 6},
        "estimate_occlusion_map": True,
        "dense_motion_params": NARROW,
    },
}


def changed(model, **entries):
    """A copy; `section__key=value` replaces, None takes away."""
    model = copy.deepcopy(model)
    for path, value in entries.items():
        *sections, key = path.split("__")
        place = model
        for section in sections:
            place = place[section]
        place[key] = value
        if value is None:
            del place[key]
    return model


ADVERSARIAL = {"scales": [1, 0.5], "block_expansion": 4, "max_features": 12, "num_blocks": 3, "use_kp": True}
# fixed by its decoder, or without effect on it
SPADE = {"block_expansion": 64, "max_features": 512, "num_down_blocks": 2, "num_bottleneck_blocks": 6}
MODELS = {
    "fomm": ("fomm", FOMM),
    "fomm adversarial": ("fomm", changed(FOMM, discriminator_params=ADVERSARIAL)),
    "fomm alone": ("fomm", changed(FOMM, discriminator_params=None)),
    "fomm plain": (
        "fomm",
        changed(
            FOMM,
            common_params__estimate_jacobian=False,
            generator_params__estimate_occlusion_map=False,
            generator_params__dense_motion_params__scale_factor=1,
            kp_detector_params__scale_factor=0.3,
        ),
    ),
    "fomm one jacobian": ("fomm", changed(FOMM, kp_detector_params__single_jacobian_map=True)),
    "dagan": ("dagan", DAGAN),
    "dagan 50": ("dagan", changed(DAGAN, depth={"num_layers": 50}, discriminator_params=None)),
    "dagan spade": (
        "dagan",
        changed(DAGAN, generator="SPADEDepthAwareGenerator", generator_params={**DAGAN["generator_params"], **SPADE}),
    ),
    "tpsm": ("tpsm", TPSM),
    "tpsm early": ("tpsm", changed(TPSM, common_params__bg=False, avd_network_params=None)),
    "tpsm one mask": ("tpsm", changed(TPSM, common_params__multi_mask=False)),
    "mcnet": ("mcnet", MCNET),
    "facevid2vid": ("facevid2vid", FACEVID2VID),
    "facevid2vid spade": (
        "facevid2vid",
        changed(
            FACEVID2VID,
            generator="spade",
            discriminator_params=None,
            common_params__feature_channel=32,
            generator_params__block_expansion=64,
            generator_params__max_features=96,
            generator_params__reshape_channel=32,
        ),
    ),
    "facevid2vid jacobians": (
        "facevid2vid",
        changed(
            FACEVID2VID,
            common_params__estimate_jacobian=True,
            kp_detector_params__single_jacobian_map=True,
            kp_detector_params__scale_factor=1,
            generator_params__estimate_occlusion_map=False,
        ),
    ),
    "mraa": ("mraa", MRAA),
    "mraa early": ("mraa", changed(MRAA, bg_predictor_params__bg_type="perspective", avd_network_params=None)),
    "mraa regressed": (
        "mraa",
        changed(
            MRAA,
            bg_predictor_params={"bg_type": "zero", "block_expansion": 32, "max_features": 1024, "num_blocks": 5},
            region_predictor_params__pca_based=False,
            generator_params__skips=False,
            **{f"{FLOW}__use_deformed_source": False, f"{FLOW}__estimate_occlusion_map": False},
        ),
    ),
}


def make(name, model, seed=0):
    torch.manual_seed(seed)
    host = create_host(name, model)
    with torch.no_grad():
        for parameter in host.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    return host.eval()


def pair(size=64):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 1, 3, size, size, dtype=torch.float64, generator=generator).unbind()


def included(part, whole):
    """Whether every entry of `part` is in `whole`."""
    return all(included(v, whole[k]) if isinstance(v, dict) else whole[k] == v for k, v in part.items())


def shapes(host):
    return {name: {key: value.shape for key, value in m.state_dict().items()} for name, m in host.sections().items()}


@pytest.mark.parametrize("case", MODELS)
def test_host_and_model_are_read_off_the_weights(case):
    name, model = MODELS[case]
    host = create_host(name, model)
    found = recognise(host.upstream_sections())
    assert found.host == name and not found.overruled
    assert included(model, found.model), found.model
    assert shapes(create_host(name, found.model)) == shapes(host)
    untold = {"kp_detector_params.temperature", "generator_params.num_bottleneck_blocks"}
    if name == "mraa":  # the same weights in another order of work
        untold = {"revert_axis_swap", "generator_params.skips", "estimate_affine", "region_predictor_params.pca_based"}
        untold |= {f"region_predictor_params.{key}" for key in ("temperature", "fast_svd")}
        untold |= {f"bg_predictor_params.{key}" for key in ("block_expansion", "max_features", "num_blocks")}
        untold.add("generator_params.pixelwise_flow_predictor_params.use_covar_heatmap")
    if name == "facevid2vid":
        untold |= {"he_estimator_params.max_features", "gan_mode"}
    assert {key for key in found.assumed if not key.startswith("train_params.")} <= untold


@pytest.mark.parametrize("scale", [0.5, 0.25, 0.0625, 1 / 3, 1 / 7, 0.3, 0.15])
def test_a_scale_factor_is_read_off_its_blur(scale):
    """Upstream keeps every int(1 / scale)-th pixel, so that a factor a little too large would be another network."""
    sections = create_host("fomm", changed(FOMM, kp_detector_params__scale_factor=scale)).upstream_sections()
    found = recognise(sections).model["kp_detector_params"]["scale_factor"]
    assert found == pytest.approx(scale, abs=1e-9) and int(1 / found) == int(1 / scale)


def test_what_upstream_published_is_told_by_its_weights():
    for name in ("fomm", "dagan", "mcnet", "tpsm", "mraa", "facevid2vid"):
        published = dict(host_class(name).published)
        with torch.device("meta"):
            host = host_class(name)(published)
        sections = host.upstream_sections()
        kernel = create_host("fomm", FOMM | {"kp_detector_params": FOMM["kp_detector_params"] | {"scale_factor": 0.25}})
        for state in sections.values():
            for key in state:
                if key.endswith("down.weight"):
                    state[key] = kernel.kp_detector.down.weight
        assert included(published, recognise(sections).model)


def save(host, path, **entries):
    """A checkpoint as upstream writes one, the networks in DDP."""
    sections = {
        name: {f"module.{key}": value for key, value in state.items()}
        for name, state in host.upstream_sections().items()
    }
    adam = torch.optim.Adam(host.parameters())
    torch.save(sections | {"optimizer_generator": adam.state_dict(), "epoch": 7} | entries, path)
    return path


def test_every_entry_of_a_checkpoint_is_loaded_or_listed(tmp_path):
    host = make("fomm", FOMM).double()
    read = read_checkpoint(save(host, tmp_path / "x.pth.tar", lr=1e-4))
    assert read.epoch == 7
    assert read.dropped == {
        "optimizer_generator": "state of an optimiser",
        "epoch": "of training, 7",
        "lr": "of type float",
    }
    again = build(read, recognise(read.sections))
    assert not again.training
    for key, value in host.state_dict().items():
        assert again.state_dict()[key].dtype == value.dtype and torch.equal(again.state_dict()[key], value), key


def test_depth_networks_come_from_files_of_their_own(tmp_path):
    host = make("dagan", changed(DAGAN, discriminator_params=None))
    sections = host.upstream_sections()
    files = [tmp_path / name for name in ("x.pth.tar", "encoder.pth", "depth.pth")]
    torch.save({name: sections[name] for name in ("generator", "kp_detector")}, files[0])
    torch.save(sections["depth_encoder"] | {"height": 256, "width": 256, "use_stereo": False}, files[1])
    torch.save(sections["depth_decoder"], files[2])
    read = read_checkpoint(*files)
    assert set(read.dropped) == {"depth_encoder.height", "depth_encoder.width", "depth_encoder.use_stereo"}
    again = build(read, recognise(read.sections))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in host.state_dict().items())
    with pytest.raises(ValueError, match=r"depth network is in further files: give upstream's encoder\.pth and depth"):
        recognise(read_checkpoint(files[0]).sections)
    blind = changed(DAGAN, depth="zeros")
    assert build(read_checkpoint(files[0]), recognise(read_checkpoint(files[0]).sections, model=blind)).model[
        "depth"
    ] == ("zeros")
    with pytest.raises(ValueError, match=r"depth\.pth: has a section 'depth_decoder', and so has another"):
        read_checkpoint(*files, files[2])


def test_a_given_model_counts_where_the_weights_do_not_tell():
    host = make("fomm", FOMM)
    given = changed(FOMM, kp_detector_params__temperature=0.3, common_params__num_kp=10)
    found = recognise(host.upstream_sections(), model=given)
    assert found.model["kp_detector_params"]["temperature"] == 0.3
    assert found.model["common_params"]["num_kp"] == 3
    assert found.overruled == ("common_params.num_kp",)


class Runs:
    def __reduce__(self):
        return os.mkdir, ("it ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"generator": {"a": Runs()}},
            r"safe loading refuses it, for it asks for \w+\.mkdir; if you trust it, run in up",
        ),
        (
            {"generator": torch.nn.Linear(1, 1)},
            r"safe loading refuses it, for it asks for torch\.nn\.modules\.linear\.Linear; if you trust it",
        ),
        ([1], "expected sections by name, found list"),
        ({"a.weight": torch.ones(1)}, "expected sections, found single weights such as 'a.weight'"),
        ({"generator": {"a": torch.ones(1), "b": 1}}, r"generator\.b is of type int, expected weights alone"),
        ({"generator": {"a": 1}, "epoch": 3}, "expected sections with weights, found generator, without a tensor of"),
        ({"generator": {"a": torch.ones(1), "module.a": torch.ones(1)}}, "generator has module.a and the same key wit"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "x.pth.tar")
    with pytest.raises(ValueError, match=r"^x\.pth\.tar: " + message):
        read_checkpoint("x.pth.tar")
    assert os.listdir() == ["x.pth.tar"]  # so nothing of it was run


@pytest.mark.parametrize("part", [0.5, 0.9])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_is_refused(tmp_path, part, zipped):
    torch.save({"generator": {"a": torch.ones(99)}}, tmp_path / "x.pth.tar", _use_new_zipfile_serialization=zipped)
    good = (tmp_path / "x.pth.tar").read_bytes()
    (tmp_path / "x.pth.tar").write_bytes(good[: int(part * len(good))])
    with pytest.raises(ValueError, match=r"x\.pth\.tar: damaged, or no file of torch\.save \("):
        read_checkpoint(tmp_path / "x.pth.tar")
    with pytest.raises(FileNotFoundError, match="no such file: none"):
        read_checkpoint("none")


def test_the_way_out_for_a_refused_file_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    host = make("fomm", FOMM)
    save(host, "x.pth.tar", loss=decimal.Decimal(1))
    with pytest.raises(ValueError, match=r"safe loading refuses it, for it asks for decimal\.Decimal") as error:
        read_checkpoint("x.pth.tar")
    code = re.search(r'python -c "(.*)"$', str(error.value))[1]
    older = os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}  # loads as upstream's torch does
    subprocess.run([sys.executable, "-c", code], check=True, env=older)
    assert read_checkpoint("plain.pth.tar").sections.keys() == host.sections().keys()


def test_a_host_of_ones_own_needs_its_model(monkeypatch):
    class Mine(type(make("fomm", FOMM))):
        name = "mine"

        def __init__(self, model):
            super().__init__(model["fomm"])
            self.model = dict(model)

    Mine.published, Mine.read_model = {}, staticmethod(Host.read_model)
    monkeypatch.setitem(registry._HOSTS, "mine", Mine)
    sections = make("fomm", FOMM).upstream_sections()
    checkpoint = Checkpoint(sections, {}, None)
    with pytest.raises(ValueError, match=r"the host 'mine' cannot be made of \{\}: KeyError\('fomm'\)"):
        build(checkpoint, recognise(sections, host="mine"))
    found = recognise(sections, host="mine", model={"fomm": FOMM})
    assert build(checkpoint, found).name == "mine" and "fomm.common_params.num_kp" in found.assumed


def test_sections_that_do_not_fit_are_named():
    host = make("fomm", FOMM)
    sections = host.upstream_sections()
    with pytest.raises(
        ValueError, match=r"not a checkpoint of fomm, .*: it has net with a …\. Name the host, and its mod"
    ):
        recognise({"net": {"a": torch.ones(1)}})
    with pytest.raises(ValueError, match="looks like a checkpoint of fomm, but it or its model lacks kp_detector"):
        recognise({"generator": sections["generator"]})
    with pytest.raises(ValueError, match=r"lacks kp\.weight"):
        recognise(sections | {"kp_detector": {}})
    with pytest.raises(ValueError, match="unknown host 'fom'"):
        recognise(sections, host="fom")


def test_weights_that_do_not_fit_are_named(tmp_path):
    host = make("fomm", FOMM)
    read = read_checkpoint(save(host, tmp_path / "x.pth.tar"))
    found = recognise(read.sections)
    read.sections["generator"]["surplus"] = torch.ones(1)
    del read.sections["kp_detector"]["kp.bias"]
    read.sections["generator"]["final.bias"][0] = torch.nan
    with pytest.raises(ValueError, match="does not fit the host 'fomm'") as error:
        build(read, found)
    for line in (
        "unexpected key generator.surplus",
        "missing key kp_detector.kp.bias",
        "generator.final.bias holds values that are not finite",
    ):
        assert line in str(error.value)
    read.sections["further"] = {"a": torch.ones(1)}
    with pytest.raises(ValueError, match="section 'further' is none of the host 'fomm'; it has generator, kp_detector"):
        build(read, found)


# ---------------------------------------------------------------- upstream's own code


def of_fomm(modules, model, memory):
    common = model["common_params"]
    return {
        "generator": modules.generator.OcclusionAwareGenerator(**model["generator_params"], **common),
        "kp_detector": modules.keypoint_detector.KPDetector(**model["kp_detector_params"], **common),
    }


def of_dagan(modules, model, memory):
    common, depth = model["common_params"], modules.depth
    encoder = depth.ResnetEncoder(model["depth"]["num_layers"], False)
    return {
        "generator": getattr(modules.generator, model["generator"])(**model["generator_params"], **common),
        "kp_detector": modules.keypoint_detector.KPDetector(
            **model["kp_detector_params"], **common | {"num_channels": 4}
        ),
        "depth_encoder": encoder,
        "depth_decoder": depth.DepthDecoder(num_ch_enc=encoder.num_ch_enc, scales=range(4)),
    }


def of_tpsm(modules, model, memory):
    common, tps = model["common_params"], model["common_params"]["num_tps"]
    return {
        "inpainting_network": modules.inpainting_network.InpaintingNetwork(**model["generator_params"], **common),
        "kp_detector": modules.keypoint_detector.KPDetector(**common),
        "dense_motion_network": modules.dense_motion.DenseMotionNetwork(**common, **model["dense_motion_params"]),
        "bg_predictor": modules.bg_motion_predictor.BGMotionPredictor(),
        "avd_network": modules.avd_network.AVDNetwork(num_tps=tps, **model["avd_network_params"]),
    }


def of_mcnet(modules, model, memory):
    common = model["common_params"]
    unit = {"mbunit": "ExpendMemoryUnit", "mb_spatial": 4, "mb_channel": 8}
    make = modules.generator.Unet_Generator_keypoint_aware
    networks = of_fomm(mock.Mock(generator=mock.Mock(), keypoint_detector=modules.keypoint_detector), model, memory)
    networks["generator"] = make(**model["generator_params"], **common, **unit)
    if not memory:
        networks["generator"].mbUnit = PassThrough()
    return networks


class PassThrough(torch.nn.Module):
    def forward(self, feature, output, keypoints):
        return feature


def picture(networks, source, driving):
    """As the demos make it, with absolute motion and, of TPSM, without the background's."""
    detector = networks["kp_detector"]
    if "inpainting_network" in networks:
        kp_source, kp_driving = detector(source), detector(driving)
        motion = networks["dense_motion_network"](
            source_image=source, kp_driving=kp_driving, kp_source=kp_source, bg_param=None, dropout_flag=False
        )
        return networks["inpainting_network"](source, motion)["prediction"]
    if "he_estimator" in networks:
        return free_view_picture(networks, source, driving)
    depth = {}
    images = [source, driving]
    if "depth_encoder" in networks:
        maps = [networks["depth_decoder"](networks["depth_encoder"](image))["disp", 0] for image in images]
        depth = {"source_depth": maps[0], "driving_depth": maps[1]}
        images = [torch.cat(both, dim=1) for both in zip(images, maps, strict=True)]
    kp_source, kp_driving = map(detector, images)
    return networks["generator"](source, kp_source=kp_source, kp_driving=kp_driving, **depth)["prediction"]


def free_view_picture(networks, source, driving):
    """As face-vid2vid's demo makes it with absolute motion: of the source the canonical keypoints, in both poses."""
    estimator, canonical = networks["he_estimator"], networks["kp_detector"](source)
    kp_source, kp_driving = (
        estimator.transformed(canonical, estimator(image), "jacobian" in canonical) for image in (source, driving)
    )
    return networks["generator"](source, kp_source=kp_source, kp_driving=kp_driving)["prediction"]


def of_facevid2vid(modules, model, memory):
    common = model["common_params"]
    kinds = {"original": "OcclusionAwareGenerator", "spade": "OcclusionAwareSPADEGenerator"}
    generator = getattr(modules.generator, kinds[model["generator"]])
    networks = {
        "generator": generator(**model["generator_params"], **common),
        "kp_detector": modules.keypoint_detector.KPDetector(**model["kp_detector_params"], **common),
        "he_estimator": modules.keypoint_detector.HEEstimator(**model["he_estimator_params"], **common),
    }
    networks["he_estimator"].transformed = modules.model.keypoint_transformation
    return networks


# our MODELS → the checkout, its modules, its networks
UPSTREAM = {
    "fomm": ("first-order-model", ("modules.generator", "modules.keypoint_detector"), of_fomm),
    "dagan": ("dagan", ("modules.generator", "modules.keypoint_detector", "depth"), of_dagan),
    "dagan spade": ("dagan", ("modules.generator", "modules.keypoint_detector", "depth"), of_dagan),
    "tpsm": (
        "tpsm",
        tuple(
            f"modules.{name}"
            for name in (
                *("inpainting_network", "keypoint_detector", "dense_motion", "bg_motion_predictor"),
                "avd_network",
            )
        ),
        of_tpsm,
    ),
    "mcnet": ("mcnet", ("modules.generator", "modules.keypoint_detector"), of_mcnet),
    **dict.fromkeys(
        ("facevid2vid", "facevid2vid spade"),
        ("face-vid2vid", ("modules.generator", "modules.keypoint_detector", "modules.model"), of_facevid2vid),
    ),
}


def upstream_model(case):
    """Name of the host and its model, all of which upstream's code can be."""
    name, model = MODELS[case]
    return name, changed(model, he_estimator_params__widths=None) if name == "facevid2vid" else model


@contextlib.contextmanager
def upstream(golden, case, model, memory=None):
    """Upstream's networks with fresh weights, by section. MCNet's code asks for a GPU and for packages in vain."""
    folder, names, make = UPSTREAM[case]
    absent = {"torchdiffeq": ["odeint_adjoint"], "cv2": []} if folder == "mcnet" else {}
    added = {name: ModuleType(name) for name in absent if name not in sys.modules}
    for name, module in added.items():
        module.__dict__.update(dict.fromkeys(absent[name]))
    sys.modules.update(added)
    try:
        with (
            mock.patch.object(torch.Tensor, "cuda", lambda tensor, *args: tensor),
            golden.upstream(folder, *names) as modules,
        ):
            torch.manual_seed(3)
            networks = make(modules, copy.deepcopy(model), memory)
            for network in networks.values():
                network.double().eval()  # random weights may be so ill-conditioned that float32 tells little
            yield networks
    finally:
        for name in added:
            del sys.modules[name]


@pytest.mark.upstream
@pytest.mark.skipif("MEMCOMP_UPSTREAM" not in os.environ, reason="MEMCOMP_UPSTREAM is not set")
@pytest.mark.parametrize("case", UPSTREAM)
@torch.no_grad()
def test_a_checkpoint_of_ours_is_the_same_to_upstreams_code(golden, tmp_path, case):
    name, model = upstream_model(case)
    host = make(name, model).double()
    torch.save(host.upstream_sections(), tmp_path / "x.pth.tar")
    source, driving = pair()
    with upstream(golden, case, model) as networks:
        sections = torch.load(tmp_path / "x.pth.tar", weights_only=True)
        for section, network in networks.items():
            network.load_state_dict(sections[section])
        expected = picture(networks, source, driving)
    assert expected.std() > 0.005
    torch.testing.assert_close(host(source, driving).prediction, expected, atol=1e-8, rtol=0)


@pytest.mark.upstream
@pytest.mark.skipif("MEMCOMP_UPSTREAM" not in os.environ, reason="MEMCOMP_UPSTREAM is not set")
@pytest.mark.parametrize("case", UPSTREAM)
@torch.no_grad()
def test_a_checkpoint_of_upstreams_code_is_the_same_to_us(golden, tmp_path, case):
    name, model = upstream_model(case)
    prefix = "module." if name in ("dagan", "mcnet") else ""  # what their training writes
    source, driving = pair()
    with upstream(golden, case, model) as networks:
        for network in networks.values():
            for parameter in network.parameters():
                parameter += 0.03 * torch.randn_like(parameter)
        sections = {
            section: {prefix + key: value for key, value in network.state_dict().items()}
            for section, network in networks.items()
        }
        torch.save(sections | {"epoch": 3}, tmp_path / "x.pth.tar")
        expected = picture(networks, source, driving)
    read = read_checkpoint(tmp_path / "x.pth.tar")
    found = recognise(read.sections)
    assert found.host == name
    host = build(read, found)
    assert expected.std() > 0.005
    torch.testing.assert_close(host(source, driving).prediction, expected, atol=1e-8, rtol=0)


@pytest.mark.upstream
@pytest.mark.skipif("MEMCOMP_UPSTREAM" not in os.environ, reason="MEMCOMP_UPSTREAM is not set")
@torch.no_grad()
def test_the_published_memory_goes_to_upstreams_code_and_back(golden, tmp_path):
    """Upstream fixes the unit's widths, keypoints and picture: 256, 128 and 64 channels, 15 and 256×256."""
    model = changed(
        MCNET,
        common_params__num_kp=15,
        discriminator_params=None,
        generator_params__block_expansion=64,
        generator_params__max_features=512,
        generator_params__dense_motion_params=NARROW,
    )
    host = create_host("mcnet", model)
    attach(host, CompensationConfig.release(memory_channels=8, memory_size=(4, 4), kernel_hidden=3), scales=[0, 1, 2])
    torch.manual_seed(0)
    for parameter in host.parameters():
        parameter += 0.01 * torch.randn_like(parameter)
    host.memory.iicm[0].noise_strength.zero_()  # else upstream draws noise
    torch.save(host.eval().upstream_sections(), tmp_path / "x.pth.tar")
    source, driving = (image.float() for image in pair(256))
    with upstream(golden, "mcnet", model, memory=True) as networks:
        sections = torch.load(tmp_path / "x.pth.tar", weights_only=True)
        for section, network in networks.items():
            network.float().load_state_dict(sections[section])
        expected = picture(networks, source, driving)
        torch.save({section: network.state_dict() for section, network in networks.items()}, tmp_path / "x.pth.tar")
    read = read_checkpoint(tmp_path / "x.pth.tar")
    again = build(read, recognise(read.sections))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in host.state_dict().items())
    assert expected.std() > 0.005
    torch.testing.assert_close(again(source, driving).prediction, expected, atol=2e-4, rtol=0)
