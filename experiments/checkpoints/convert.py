"""`memcomp convert`: upstream's checkpoints into pretrained folders of ours, and back."""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memcomp.adapters import Host
    from memcomp.adapters.upstream.checkpoint import Checkpoint, Recognised

APART = {"depth_encoder": "encoder.pth", "depth_decoder": "depth.pth"}  # upstream keeps these sections in own files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp convert`."""
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="upstream's checkpoint (of DaGAN, encoder.pth and depth.pth too); or a run or pretrained folder of ours",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make; with --to upstream, file to write")
    parser.add_argument("--to", choices=("pretrained", "upstream"), default="pretrained", help="default pretrained")
    parser.add_argument(
        "--model", metavar="FILE", help="recipe or upstream YAML with what the weights do not tell (default: published)"
    )
    parser.add_argument("--host", metavar="NAME", help="the host that it is of (default: recognised)")
    parser.add_argument("--size", type=int, help="size of the pictures (default 256; a run and --model know theirs)")
    parser.add_argument("--without-memory", action="store_true", help="write the host alone")


def run(args: argparse.Namespace) -> None:
    """`memcomp convert`.

    Pickles are read by torch's safe loading alone. A file that needs more than tensors and plain containers is refused;
    the error names what it asks for, and the command that writes its weights anew in upstream's own environment.
    """
    from memcomp.experiments.errors import UserError

    if args.size is not None and args.size < 1:
        raise UserError(f"--size: expected 1 or more, got {args.size}")
    if args.output.exists() and not (args.output.is_dir() and not any(args.output.iterdir())):
        raise UserError(f"{args.output}: expected a new name, it exists already")
    try:
        if args.to == "upstream":
            _to_upstream(args)
        else:
            _to_pretrained(args)
    except UserError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None


def _to_pretrained(args: argparse.Namespace) -> None:
    from memcomp.adapters.pretrained import save_pretrained
    from memcomp.experiments.checkpoints.run_file import UPSTREAM
    from memcomp.experiments.errors import UserError
    from memcomp.experiments.files import writable_folder

    if all(file.suffix in UPSTREAM for file in args.files):
        made = _theirs(args)
    elif len(args.files) != 1:
        raise UserError(f"{args.files[-1]}: expected files of upstream ({', '.join(UPSTREAM)}), or one run of ours")
    elif args.model or args.host:
        raise UserError(f"--model, --host: expected upstream's checkpoint ({', '.join(UPSTREAM)}) with them")
    else:
        made = _ours(args)
    if args.size:
        _check_size(made.host, args.size)
    writable_folder(args.output.parent)
    save_pretrained(made.host, args.output, size=made.size, source=made.source)
    print("\n".join(made.lines))
    print(f"memory       {_memory(made.host)}")
    print(f"written      {args.output}: model.safetensors, config.json (pictures of {made.size}×{made.size})")
    example = "--source face.png --driving video.mp4 --output moved.mp4"
    print(f"next         memcomp animate --checkpoint {args.output} {example}")


def _check_size(host: Host, size: int) -> None:
    """Networks that halve a picture several times refuse some sizes, or give back another."""
    import torch

    from memcomp.experiments.errors import UserError

    channels = 3 + (host.model.get("depth") == "truth")
    blank = torch.zeros(1, channels, size, size)
    with torch.no_grad():
        try:
            found = tuple(copy.deepcopy(host).float()(blank, blank).prediction.shape[2:])
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"--size {size}: the host {host.name!r} takes no pictures of this size ({reason})"
            ) from None
    if found != (size, size):
        made = "×".join(map(str, found))
        raise UserError(f"--size {size}: the host {host.name!r} makes {made} of it; expected a size that it keeps")


def _to_upstream(args: argparse.Namespace) -> None:
    import torch

    from memcomp.experiments.checkpoints.run_file import DEFAULT_SIZE
    from memcomp.experiments.errors import UserError
    from memcomp.experiments.files import atomic_write

    if len(args.files) != 1 or args.model or args.host or args.size:
        raise UserError("--to upstream: expected one run or pretrained folder of ours, without --model, --host, --size")
    made = _ours(args)
    host, sections = made.host, made.host.upstream_sections()
    if _attached(host) and not any(key.startswith("mbUnit.") for key in sections[host.generator_section]):
        raise UserError(
            f"{args.files[0]}: has a memory ({_memory(host)}), of which upstream's code for {host.name} knows nothing; "
            "expected --without-memory to write the host alone"
        )
    # copies: torch.save would write the whole of a tensor of which one is a part
    states = {name: {key: value.clone() for key, value in state.items()} for name, state in sections.items()}
    apart = {args.output.parent / APART[name]: states.pop(name) for name in list(states) if name in APART}
    for file in apart:
        if file.exists():
            raise UserError(f"{file}: is to hold the depth network; expected a new name, it exists already")
    epoch = (made.source or {}).get("epoch") or 0  # upstream's code wants one to go on from
    for file, content in {args.output: states | {"epoch": epoch}, **apart}.items():
        # through a handle: torch makes a path's stem a name inside the file, and refuses some
        with atomic_write(file) as temporary, temporary.open("wb") as opened:
            torch.save(content, opened)
    print("\n".join(made.lines))
    for name, state in sections.items():
        print(f"section      {name}: {len(state)} keys{', in ' + APART[name] if name in APART else ''}")
    print(f"memory       {_memory(host)}")
    if made.size != DEFAULT_SIZE:
        print(f"size         {made.size}×{made.size} has no place in it: to convert it back say --size {made.size}")
    print(f"written      {', '.join(map(str, (args.output, *apart)))}, for upstream's own code")


@dataclass(frozen=True)
class _Made:
    """A host, and what to say of it."""

    host: Host
    size: int
    source: dict[str, Any] | None
    lines: list[str]


def _ours(args: argparse.Namespace) -> _Made:
    from memcomp.adapters.pretrained import build_pretrained, read_pretrained
    from memcomp.experiments.checkpoints.run_file import DEFAULT_SIZE, checkpoint_path, is_pretrained, load_host

    file = checkpoint_path(args.files[0])
    source: dict[str, Any] | None = None
    if is_pretrained(file):  # not as a run, so that it keeps its dtype
        read = read_pretrained(file.parent)
        host, size, source = build_pretrained(read, file.parent), read.size or DEFAULT_SIZE, read.source
    else:
        host, recipe = load_host(file)
        size = recipe.size
    _without_memory(host, args)
    return _Made(host, args.size or size, source, [f"host         {host.name}"])


def _theirs(args: argparse.Namespace) -> _Made:
    from memcomp.adapters.upstream.checkpoint import build, read_checkpoint, recognise
    from memcomp.experiments.checkpoints.run_file import DEFAULT_SIZE
    from memcomp.experiments.checkpoints.shipped import sha256
    from memcomp.experiments.files import existing_file

    files = [existing_file(file, "checkpoint") for file in args.files]
    checkpoint = read_checkpoint(*files)
    name, model, size = (None, None, None) if args.model is None else _model(args.model)
    recognised = recognise(checkpoint.sections, args.host or name, model)
    host = build(checkpoint, recognised)
    _without_memory(host, args)
    source = {"files": {file.name: sha256(file) for file in files}, "epoch": checkpoint.epoch}
    return _Made(host, args.size or size or DEFAULT_SIZE, source, _report(host, checkpoint, recognised, args.model))


def _model(file: str) -> tuple[str | None, dict[str, Any], int | None]:
    """The `model` in a recipe, with its host and the size of its pictures, or in upstream's YAML."""
    import yaml

    from memcomp.experiments.errors import UserError
    from memcomp.experiments.recipe.load import load_recipe

    if Path(file).is_file():
        try:
            raw = yaml.safe_load(Path(file).read_bytes())
        except yaml.YAMLError as error:
            raise UserError(f"{file}: expected YAML ({str(error).splitlines()[0]})") from None
        if isinstance(raw, dict) and "model_params" in raw:
            if not isinstance(raw["model_params"], dict):
                raise UserError(f"{file}: model_params: expected a mapping, got {raw['model_params']!r}")
            return None, raw["model_params"], None
    recipe = load_recipe(file)
    return recipe.host.name, recipe.host.model, recipe.size


def _without_memory(host: Host, args: argparse.Namespace) -> None:
    handle = _attached(host)
    if args.without_memory and handle is not None:
        handle.remove()


def _attached(host: Host) -> Any:
    from memcomp.handle import Handle

    return Handle.of(host.sections()[host.generator_section])


def _memory(host: Host) -> str:
    handle = _attached(host)
    if handle is None:
        return "none"
    variant = "no memory" if host.memory is None else f"variant {host.memory.config.variant}"
    return f"{variant}, mode {handle.mode}, scales {', '.join(map(str, handle.scales))}"


def _report(host: Host, checkpoint: Checkpoint, recognised: Recognised, file: str | None) -> list[str]:
    """What became of every entry."""
    lines = [f"host         {host.name}"]
    for name, state in checkpoint.sections.items():
        count = sum(value.numel() for value in state.values()) / 1e6
        lines.append(f"loaded       {name}: {len(state)} keys, {count:.2f} M numbers")
    lines += [f"dropped      {name}: {what}" for name, what in checkpoint.dropped.items()]
    origin = f"as {file} says" if file else "as published; no weight tells it"
    lines += [f"parameter    {name}: {origin}" for name in recognised.assumed]
    lines += [f"parameter    {name}: read off the weights, not as {file} says" for name in recognised.overruled]
    return lines
