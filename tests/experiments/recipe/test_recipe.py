"""Recipes: strict reading, the published settings, comments that tell the truth."""

import dataclasses
import re
import typing
from importlib import resources

import pytest
import yaml

from memcomp import CompensationConfig
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.load import load_recipe, recipe_from_dict, with_overrides
from memcomp.experiments.recipe.packaged import recipe_names
from memcomp.experiments.recipe.sections import MemorySection, Recipe

NAMES = recipe_names()


def text_of(name):
    return resources.files("memcomp.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def test_the_promised_recipes_are_there():
    assert {"fomm", "fomm_mcnet", "demo/fomm", "demo/fomm_mcnet"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_recipe_reads_back_as_itself(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert recipe_from_dict(recipe.to_dict(), "test") == recipe


def defaults(kind=Recipe, prefix=""):
    """Dotted key → default, for every key of a recipe."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        section = next(
            (k for k in (hints[field.name], *typing.get_args(hints[field.name])) if dataclasses.is_dataclass(k)), None
        )
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if section is None:
            yield prefix + field.name, made
        else:
            if made is None:
                yield prefix + field.name, None
            yield from defaults(section, f"{prefix}{field.name}.")
            if section is MemorySection:
                yield from ((f"{prefix}memory.{k}", v) for k, v in CompensationConfig().to_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_commented_with_its_type_and_default(name):
    known, seen, path = dict(defaults()), set(), []
    inside_model = 99
    for line in text_of(name).splitlines():
        match = re.match(r"^( *)([a-z_0-9]+):(.*)$", line)
        if not match:
            continue
        depth = len(match[1]) // 2
        if depth > inside_model or match[2] == "base":  # upstream's own names; no key of a resolved recipe
            continue
        path = [*path[:depth], match[2]]
        key = ".".join(path)
        inside_model = depth if key == "host.model" else 99
        if key not in known:  # a section such as `data:`, or one that may be null
            assert any(other.startswith(key + ".") for other in known), key
            continue
        seen.add(key)
        comment = re.search(r"# (.+?), default (.+?)(?:: .*)?$", match[3])
        assert comment, f"{name}: {key} has no comment of the form 'type, default value'"
        assert re.match(r"int|number|text|bool|mapping|list|two|2 or inf|all", comment[1]), line
        default = yaml.safe_load(comment[2])
        expected = list(known[key]) if isinstance(known[key], tuple) else known[key]
        assert default == expected, f"{name}: {key}: the comment says {default!r}, the default is {expected!r}"
    if "base" in yaml.safe_load(text_of(name)):  # lists what differs
        return
    optional = ("loss.perceptual.", "memory.", "host.model")
    assert {key for key in known if not key.startswith(optional)} - {"loss.perceptual", "memory"} <= seen


def test_every_field_of_a_memory_is_in_a_recipe():
    """One that nothing lists would be found in the code alone."""
    listed = {key for name in NAMES for key in (yaml.safe_load(text_of(name)).get("memory") or {})}
    fields = {field.name for field in dataclasses.fields(CompensationConfig)}
    assert fields - {"variant"} <= listed  # the preset says which variant


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'"),
        ("optm.lr=1", "unknown key 'optm'; did you mean 'optim'"),
        ("batch_size=4", "unknown key 'batch_size'; did you mean 'optim.batch_size'"),
        ("memory.strat=identity", "unknown key 'memory.strat'; did you mean 'memory.start'"),
        ("loss.perceptual.layrs=[a]", "unknown key 'loss.perceptual.layrs'; did you mean 'loss.perceptual.layers'"),
        ("zzz=1", "unknown key 'zzz'; expected one of seed, device"),
        ("optim.lr=fast", "optim.lr: expected a number, got 'fast' (str)"),
        ("optim.steps=1.5", "optim.steps: expected a whole number or null, got 1.5 (float)"),
        ("optim.batch_size=true", "optim.batch_size: expected a whole number, got True (bool)"),
        ("data.kind=clip", "data.kind: expected 'heads' or 'clips', got 'clip' (str); did you mean 'clips'"),
        ("data=null", "data: expected keys below it, got null"),
        ("host=fomm", "host: expected keys below it, got 'fomm' (str)"),
        ("memory=on", "memory: expected keys below it or null"),
        ("memory.memory_size=[8]", "memory_size must be two positive integers"),
        (
            "memory.start=ident",
            "memory.start: expected 'paper' or 'identity' or 'residual', got 'ident' (str); did you mean 'identity'",
        ),
        (
            "memory.mode=skips",
            "memory.mode: expected 'inplace' or 'skip' or 'skip_control', got 'skips' (str); did you mean 'skip'",
        ),
        ("optim.clip_norm=1", "optim.clip_norm: expected 2 or 'inf', got 1 (int)"),
        ("data={kind: clips, root: x, depth: true}", "data.depth: expected false, only procedural heads"),
        ("stage=avd", "loss: expected no term: stage avd has a loss of its own"),
        ("memory.scales=some", "memory.scales: expected 'all' or a list, each a whole number"),
        ("optim.lr=0", "optim.lr: expected a number above 0"),
        ("optim.lr=.inf", "optim.lr: expected a number, got inf"),
        ("optim.steps=0", "optim.steps: expected a number above 0"),
        ("optim.betas=[0.5, 1.0]", "optim.betas: expected two numbers below 1"),
        ("optim.clip=-1", "optim.clip: expected a number above 0"),
        ("threads=-1", "threads: expected a number above 0"),
        ("seed=99999999999999999999", "seed: expected 0 … 9223372036854775807"),
        ("data.workers=1000000", "data.workers: expected 0 … 1024"),
        ("data.frames=1", "data.frames: expected 2 or more, got 1"),
        ("data.workers=-1", "data.workers: expected 0 …"),
        ("data.augment.hue=0.6", "data.augment.hue: expected 0 … 0.5"),
        ("data.augment.mirror=2", "data.augment.mirror: expected 0 … 1"),
        ("loss.ssim=-1", "loss.ssim: expected 0 …"),
        ("loss.perceptual.scales=[]", "loss.perceptual.scales: expected at least one number"),
        ("loss.perceptual.scales=[1, 0]", "loss.perceptual.scales: expected a number above 0"),
        ("loss={}", "loss: expected at least one term"),
        ("optim.epochs=3", "not both: to count steps, unset the other by optim.epochs=null"),
        ("optim.steps=null", "optim: expected either steps or epochs, got neither"),
        ("freeze_host=true", "freeze_host: without a memory nothing would be trained"),
        ("loss.consistency=1", "loss.consistency: expected 0 without a memory"),
        ("loss.teacher=1", "loss.teacher: expected 0 without a memory"),
        ("data.kind=clips", "data.root: expected the folder"),
        ("optim.lr", "expected key=value"),
        ("seed.more=1", "'seed' holds a single value"),
        ("optim.lr=[1", "expected YAML"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_was_expected(override, said):
    with pytest.raises(UserError) as caught:
        load_recipe("demo/fomm", [override])
    assert said in str(caught.value)
    assert override.split("=")[0] in str(caught.value)


def test_an_error_names_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text_of("demo/fomm").replace("warmup:", "warmpu:"))
    with pytest.raises(UserError, match=r"mine\.yaml: unknown key 'optim\.warmpu'; did you mean 'optim\.warmup'"):
        load_recipe(path)
    path.write_text("seed: 0\nsize: [1\n")
    with pytest.raises(UserError, match=r"mine\.yaml, line 3: expected YAML"):
        load_recipe(path)
    path.write_text("optim: {steps: 1}\nseed: 0\nseed: 1\n")
    with pytest.raises(UserError, match=r"mine\.yaml.*'seed' twice"):
        load_recipe(path)
    path.write_text("")
    with pytest.raises(UserError, match=r"mine\.yaml: recipe: expected keys"):
        load_recipe(path)
    with pytest.raises(UserError, match=r"expected a recipe file or one of .*did you mean 'demo/fomm'"):
        load_recipe("demo/fom")


def test_overrides_are_yaml_and_reach_into_what_was_null():
    recipe = load_recipe(
        "demo/fomm", ["optim.lr=1e-3", "memory.start=identity", "memory.memory_size=[4, 6]", "threads=2"]
    )
    assert recipe.optim.lr == 0.001
    assert recipe.threads == 2
    assert recipe.memory.config == CompensationConfig.paper(start="identity", memory_size=(4, 6))
    assert with_overrides(recipe, ["memory=null"], "test").memory is None


BASE = """
base: demo/fomm
size: 128
memory: {start: identity}
loss: {consistency: 2.0}
host: {model: {align_corners: true}}
"""


def test_a_base_gives_every_key_that_a_recipe_leaves_out(tmp_path):
    (tmp_path / "mine.yaml").write_text(BASE)
    mine, base = load_recipe(tmp_path / "mine.yaml").to_dict(), load_recipe("demo/fomm").to_dict()
    assert (mine["size"], mine["memory"]["start"], mine["loss"]["consistency"]) == (128, "identity", 2)
    assert mine["host"]["model"] == base["host"]["model"] | {"align_corners": True}
    for key in ("size", "memory"):
        base[key] = mine[key]
    base["loss"]["consistency"], base["host"] = 2.0, mine["host"]
    assert mine == base
    (tmp_path / "other.yaml").write_text(f"base: {tmp_path}/mine.yaml\nmemory: null\nloss: {{consistency: 0}}\n")
    other = load_recipe(tmp_path / "other.yaml", ["optim.lr=1.0"])
    assert (other.size, other.memory, other.optim.lr) == (128, None, 1)


def test_a_wrong_base_is_named(tmp_path):
    mine, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    for text, said in (
        ("base: demo/fom", r"demo/fom: expected a recipe.*did you mean 'demo/fomm'"),
        ("base: 3", r"mine\.yaml: base: expected a recipe's name or path, got 3"),
        (f"base: {other}\nsize: 64", r"other\.yaml: unknown key 'seeed'; did you mean 'seed'"),
        ("base: demo/fomm\noptim: {lrr: 1}", r"mine\.yaml: unknown key 'optim\.lrr'; did you mean 'optim\.lr'"),
        (f"base: {mine}", r"mine\.yaml: base: expected recipes that do not name each other"),
    ):
        mine.write_text(text)
        other.write_text("base: demo/fomm\nseeed: 1\n")
        with pytest.raises(UserError, match=said):
            load_recipe(mine)


def test_the_release_preset_fills_the_other_fields():
    recipe = load_recipe("demo/fomm", ["memory.preset=release", "memory.memory_channels=64"])
    assert recipe.memory.config == CompensationConfig.release(memory_channels=64)


def test_a_size_that_the_host_refuses_is_an_error_of_the_recipe():
    from memcomp.experiments.checkpoints.build import build_host

    with pytest.raises(UserError, match="multiples of 8, got 20×20"):
        build_host(load_recipe("demo/fomm", ["size=40"]))
