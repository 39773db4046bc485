"""`memcomp evaluate`: measure a checkpoint on fixed, seeded pairs of people that training did not see."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memcomp.adapters import Host
    from memcomp.experiments.checkpoint import RunState
    from memcomp.experiments.data.clips import Clips
    from memcomp.experiments.data.eval_pairs import ClipPair
    from memcomp.experiments.data.heads_set import HeadsSet
    from memcomp.experiments.metrics.panel import Panel
    from memcomp.experiments.recipe import Recipe
    from memcomp.experiments.scoring import Pair, Predict, Results

SAME, CROSS = "same identity", "cross identity"
PEOPLE = 50  # identities of the test split of procedural heads
COPY = "copy of the source"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp evaluate`."""
    parser.add_argument("checkpoint", help="checkpoint, folder of a run, or `demo` for the host of the package")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="keys of its recipe to change, as data.root=…"
    )
    parser.add_argument("--pairs", type=int, default=100, metavar="N", help="pairs of each kind (default: %(default)s)")
    parser.add_argument("--same", action="store_true", help="only pairs of one person")
    parser.add_argument("--cross", action="store_true", help="only pairs of two people")
    parser.add_argument(
        "--pairs-file", type=Path, action="append", default=[], metavar="CSV", help="clips: these pairs"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the pairs (default: %(default)s)")
    parser.add_argument("--videos", type=int, default=4, metavar="N", help="clips: cross-identity videos to write")
    parser.add_argument("--video-frames", type=int, default=75, metavar="N", help="their length (default: %(default)s)")
    parser.add_argument(
        "--clips", type=int, default=0, metavar="N", help="also measure jitter and flicker of N whole clips"
    )
    parser.add_argument("--batch", type=int, default=8, help="pairs predicted at once (default: %(default)s)")
    parser.add_argument(
        "--metrics", default="", metavar="NAME,…", help="all, or some of those in experiments/metrics/README.md"
    )
    parser.add_argument(
        "--backend",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what reads faces, or where weights are: landmarks=face-alignment, identity=openface:FILE, …",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: `evaluation` beside the checkpoint")


def run(args: argparse.Namespace) -> None:
    """`memcomp evaluate`."""
    from tqdm import tqdm

    from memcomp.experiments.checkpoint import build_host, load_run, load_weights
    from memcomp.experiments.errors import UserError
    from memcomp.experiments.files import writable_folder
    from memcomp.experiments.metrics.panel import Panel
    from memcomp.experiments.metrics.protocols import DEFAULT
    from memcomp.experiments.optim import Processes
    from memcomp.experiments.pictures import worst_median_best
    from memcomp.experiments.recipe import with_overrides
    from memcomp.experiments.report import results_json, write_json, write_pairs
    from memcomp.experiments.scoring import copy_source, host_predictor, score

    for name, least in (("pairs", 1), ("batch", 1), ("video_frames", 1), ("videos", 0), ("clips", 0), ("seed", 0)):
        if not least <= getattr(args, name) < 2**63:
            raise UserError(f"--{name.replace('_', '-')}: expected {least} or more, got {getattr(args, name)}")
    state = load_run(args.checkpoint)
    recipe = with_overrides(state.recipe, args.overrides, str(args.checkpoint))
    host = build_host(recipe)
    load_weights(host, state.model(), str(args.checkpoint))
    processes = Processes.start(recipe.device)  # torchrun shares the pairs among several
    host.to(processes.device).eval()
    panel = Panel(args.metrics.replace(" ", "").split(",") if args.metrics else DEFAULT, args.backend, processes.device)
    kinds = [kind for kind, wanted in ((SAME, args.same), (CROSS, args.cross)) if wanted] or [SAME, CROSS]
    left_out: list[str] = []
    pairs = evaluation_pairs(recipe, kinds, args.pairs, args.seed, args.pairs_file, left_out)
    folder = writable_folder(args.output or default_folder(args.checkpoint))

    truth = {kind: has_truth(recipe, kind) for kind in pairs}
    measured = {kind: chosen for kind, chosen in pairs.items() if panel.measures(truth=truth[kind])}
    name = recipe.label
    results = {}
    total = sum(map(len, measured.values())) // processes.world
    with tqdm(total=total, unit="pair", desc="evaluate", disable=not processes.first) as bar:
        for kind, chosen in measured.items():
            models = {COPY: copy_source, name: host_predictor(host, same=kind == SAME)}
            results[kind] = score(models, chosen, panel, truth=truth[kind], batch=args.batch, tick=bar.update)
    processes.stop()
    if not processes.first:
        return
    about = description(state, recipe, args, panel, {kind: len(chosen) for kind, chosen in pairs.items()})
    if results:
        print(tables(results, about))
        write_pairs(folder / "pairs.csv", results)
        drawn = {kind: result[name] for kind, result in results.items() if truth[kind] and "l1" in panel.metrics}
        if drawn:
            worst_median_best(folder / "pairs.png", drawn, measured)
    if recipe.data.kind == "clips" and CROSS in pairs:
        about["videos"] = write_videos(folder / "videos", host, pairs[CROSS][: args.videos], args)  # type: ignore[arg-type]
    if args.clips:
        about["clips"] = whole_clips(recipe, {COPY: copy_source, name: host_predictor(host, same=True)}, args)
    if left_out:
        print("\n" + rows_left_out(left_out))
        about["pairs_left_out"] = left_out
    write_json(folder / "metrics.json", about | {"results": results_json(results)})
    print(f"\nwritten to {folder}: {', '.join(sorted(path.name for path in folder.iterdir() if path.name[0] != '.'))}")


def has_truth(recipe: Recipe, kind: str) -> bool:
    """Whether pairs of a kind have a true target: two real people have none."""
    return recipe.data.kind == "heads" or kind == SAME


def evaluation_pairs(
    recipe: Recipe,
    kinds: Sequence[str],
    count: int,
    seed: int,
    files: Sequence[Path] = (),
    left_out: list[str] | None = None,
) -> dict[str, Sequence[Pair]]:
    """Kind → pairs of people that training does not see: the recipe's own data, test split.

    Args:
        recipe: `data`, `size`.
        kinds: of `SAME` and `CROSS`.
        count: pairs of each kind.
        seed: of the draw; the same pairs for every run, whatever its own seed.
        files: clips only: CSV files that name the pairs instead.
        left_out: gets a line for each row of these that cannot be used; None = no row may be.

    Raises:
        UserError: what `HeadsSet` and `Clips` refuse, or a file of pairs that does not fit.
    """
    from memcomp.experiments.data.eval_pairs import draw_pairs, is_cross, read_pairs
    from memcomp.experiments.data.heads_set import HeadsSet
    from memcomp.experiments.errors import UserError

    if recipe.data.kind == "heads" and files:
        raise UserError("--pairs-file: expected with data.kind=clips, the checkpoint's recipe says heads")
    clips = test_split(recipe)
    if isinstance(clips, HeadsSet):
        draw = {SAME: clips.same_identity, CROSS: clips.cross_identity}
        return {kind: draw[kind](count, seed) for kind in kinds}
    if not files:
        return {kind: draw_pairs(clips, count, seed, cross=kind == CROSS) for kind in kinds}
    named = [pair for file in files for pair in read_pairs(file, clips, count, left_out)]
    sorted_out = {kind: [pair for pair in named if is_cross(pair) == (kind == CROSS)] for kind in kinds}
    return {kind: chosen for kind, chosen in sorted_out.items() if chosen}


def rows_left_out(lines: Sequence[str], shown: int = 3) -> str:
    """How many rows of a list of pairs could not be used, and the first few reasons."""
    more = f"; and {len(lines) - shown} more" if len(lines) > shown else ""
    return f"{len(lines)} rows of the list of pairs left out: {'; '.join(lines[:shown])}{more}"


def test_split(recipe: Recipe) -> HeadsSet | Clips:
    """The recipe's own data, people that training does not see.

    Raises:
        UserError: what `HeadsSet` and `Clips` refuse.
    """
    from memcomp.experiments.data.clips import Clips, user_cache
    from memcomp.experiments.data.heads_set import HeadsSet

    data = recipe.data
    cache = Path(data.cache) if data.cache else user_cache()
    if data.kind == "heads":
        return HeadsSet("test", PEOPLE, data.frames, recipe.size, data.seed, cache, data.rate, data.depth)
    root = Path(str(data.root))
    folder = root / "test" if (root / "test").is_dir() else root
    return Clips(folder, recipe.size, cache=cache / "clips", cache_gb=data.cache_gb)


def whole_clips(recipe: Recipe, models: Mapping[str, Predict], args: argparse.Namespace) -> dict[str, Any]:
    """Print jitter and flicker of whole clips; returns them for metrics.json."""
    from memcomp.experiments.backends.base import Unavailable
    from memcomp.experiments.backends.choose import create_backend, read_choices
    from memcomp.experiments.whole_clips import clip_table, first_clips, measure_clips

    try:
        landmarks = create_backend("landmarks", read_choices(args.backend))
        about = landmarks.about
    except Unavailable as error:
        landmarks, about = None, f"not available: {error}"
    clips = first_clips(test_split(recipe), args.clips, args.video_frames)
    scores = measure_clips(models, clips, landmarks, args.batch)
    print(f"\n{clip_table(scores)}\n\nlandmarks of the jitter: {about}")
    return {"landmarks": about, "scores": {model: [vars(s) for s in found] for model, found in scores.items()}}


def tables(results: Results, about: Mapping[str, Any]) -> str:
    """Both protocols' tables, and a line that says what the numbers rest on."""
    from memcomp.experiments.report import score_table

    text = [*(score_table(results, protocol) for protocol in ("standard", "paper")), about["note"], *about["backends"]]
    return "\n\n".join(text)


def description(
    state: RunState, recipe: Recipe, args: argparse.Namespace, panel: Panel, counts: Mapping[str, int]
) -> dict[str, Any]:
    """What the numbers rest on, for metrics.json."""
    from memcomp.experiments.metrics.protocols import MINIMUM_PIXELS
    from memcomp.experiments.report import versions

    backbone = state.info.get("backbone") or "none"
    return {
        "format": "memcomp-evaluation-1",
        "checkpoint": str(args.checkpoint),
        "step": state.step,
        "size": recipe.size,
        "pairs": dict(counts),
        "pairs_seed": args.seed,
        "pairs_files": [str(file) for file in args.pairs_file],
        "motion": "absolute",
        "minimum_masked_pixels": MINIMUM_PIXELS,
        "perceptual_backbone": backbone,
        "metrics": panel.metrics,
        "backends": panel.about,
        "note": f"{recipe.size}×{recipe.size}, absolute motion, step {state.step}, perceptual loss: {backbone}; "
        "the protocols' formulas: experiments/metrics/README.md",
        "versions": versions(),
        "recipe": recipe.to_dict(),
    }


def write_videos(folder: Path, host: Host, pairs: Sequence[ClipPair], args: argparse.Namespace) -> list[str]:
    """For each pair of two people a video: source | driving | prediction, relative motion; returns the files' names."""
    import torch
    from tqdm import tqdm

    from memcomp.experiments.motion import Motion, animate
    from memcomp.experiments.video import FOLDER_RATE, to_frame, write_video

    names = []
    for pair in tqdm(pairs, unit="video", desc="cross identity"):
        names.append(f"{pair.name.replace('#', '-')}.mp4")
        source = pair.source
        with write_video(folder / names[-1], FOLDER_RATE) as append:
            for pose, result in animate(host, source, pair.driving_clip(args.video_frames), Motion(), args.batch):
                append(to_frame(torch.cat([source, pose, result], dim=-1)))
    return names


def default_folder(checkpoint: str) -> Path:
    """Where an evaluation goes if nothing else is said: into the run's folder, or beside the file."""
    path = Path("runs/demo") if checkpoint == "demo" else Path(checkpoint)
    return (path.parent if path.is_file() else path) / "evaluation"
