"""`memcomp evaluate`: measure a checkpoint on fixed, seeded pairs of people that training did not see."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcomp.experiments.evaluation.pairs import (
    CROSS,
    LIST,
    NO_TRUTH,
    SAME,
    add_pair_arguments,
    at_root,
    evaluation_pairs,
    has_truth,
    heads_size,
    test_split,
)

if TYPE_CHECKING:
    from memcomp.adapters import Host
    from memcomp.experiments.checkpoints.run_file import RunState
    from memcomp.experiments.evaluation.clip_pairs import ClipPair
    from memcomp.experiments.evaluation.panel import Panel
    from memcomp.experiments.evaluation.scores import Predict, Results
    from memcomp.experiments.recipe.load import Recipe

COPY = "copy of the source"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp evaluate`."""
    parser.add_argument("checkpoint", help="checkpoint, folder of a run, or `demo` for the host of the package")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="keys of its recipe to change, as data.root=…"
    )
    add_pair_arguments(parser)
    parser.add_argument("--same", action="store_true", help="only pairs of one person")
    parser.add_argument("--cross", action="store_true", help="only pairs of two people")
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

    from memcomp.experiments.checkpoints.run_file import build_host, load_run, load_weights
    from memcomp.experiments.errors import UserError
    from memcomp.experiments.evaluation.pair_lists import ListReport, write_list
    from memcomp.experiments.evaluation.panel import Panel
    from memcomp.experiments.evaluation.scores import copy_source, host_predictor, score
    from memcomp.experiments.files import writable_folder
    from memcomp.experiments.metrics.protocols import DEFAULT
    from memcomp.experiments.output.figures import worst_median_best
    from memcomp.experiments.output.tables import results_json, write_json, write_pairs
    from memcomp.experiments.processes import Processes
    from memcomp.experiments.recipe.load import with_overrides

    for name, least in (("pairs", 1), ("batch", 1), ("video_frames", 1), ("videos", 0), ("clips", 0), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and not least <= value < 2**63:
            raise UserError(f"--{name.replace('_', '-')}: expected {least} or more, got {value}")
    state = load_run(args.checkpoint)
    recipe = at_root(with_overrides(state.recipe, args.overrides, str(args.checkpoint)), args.root)
    host = build_host(recipe)
    load_weights(host, state.model(), str(args.checkpoint))
    processes = Processes.start(recipe.device)  # torchrun shares the pairs among several
    host.to(processes.device).eval()
    metrics = args.metrics.replace(" ", "").split(",") if args.metrics else DEFAULT
    panel = Panel(metrics, args.backend, processes.device, heads_size(recipe))
    kinds = [kind for kind, wanted in ((SAME, args.same), (CROSS, args.cross)) if wanted] or [SAME, CROSS]
    lists = ListReport()
    pairs = evaluation_pairs(recipe, kinds, args.pairs, args.seed, args.pairs_file, lists)
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
    if unmeasured := [kind for kind in pairs if kind not in measured]:
        print(f"\n{' and '.join(unmeasured)}: not measured, {NO_TRUTH}")
    if recipe.data.kind == "clips" and CROSS in pairs:
        about["videos"] = write_videos(folder / "videos", host, pairs[CROSS][: args.videos], args)  # type: ignore[arg-type]
    if args.clips:
        about["clips"] = whole_clips(recipe, {COPY: copy_source, name: host_predictor(host, same=True)}, args)
    write_list(folder / LIST, pairs)
    if lists.rows:
        print(f"\n{lists}")
        about["lists"] = vars(lists)
    write_json(folder / "metrics.json", about | {"results": results_json(results)})
    print(f"\nwritten to {folder}: {', '.join(sorted(path.name for path in folder.iterdir() if path.name[0] != '.'))}")


def whole_clips(recipe: Recipe, models: Mapping[str, Predict], args: argparse.Namespace) -> dict[str, Any]:
    """Print jitter and flicker of whole clips; returns them for metrics.json."""
    from memcomp.experiments.backends.base import Unavailable
    from memcomp.experiments.backends.choose import create_backend, read_choices
    from memcomp.experiments.evaluation.whole_clips import clip_table, first_clips, measure_clips

    heads = heads_size(recipe)
    try:
        landmarks = create_backend("landmarks", read_choices(args.backend, heads), heads)
        about = landmarks.about
    except Unavailable as error:
        landmarks, about = None, f"not available: {error}"
    clips = first_clips(test_split(recipe), args.clips, args.video_frames)
    scores = measure_clips(models, clips, landmarks, args.batch)
    print(f"\n{clip_table(scores)}\n\nlandmarks of the jitter: {about}")
    return {"landmarks": about, "scores": {model: [vars(s) for s in found] for model, found in scores.items()}}


def tables(results: Results, about: Mapping[str, Any]) -> str:
    """Both protocols' tables, and what the numbers rest on."""
    from memcomp.experiments.output.tables import score_table, versions_line

    text = [score_table(results, protocol) for protocol in ("standard", "paper")]
    return "\n\n".join([*text, about["note"], *about["backends"], versions_line()])


def description(
    state: RunState, recipe: Recipe, args: argparse.Namespace, panel: Panel, counts: Mapping[str, int]
) -> dict[str, Any]:
    """What the numbers rest on, for metrics.json."""
    from memcomp.experiments.metrics.protocols import MINIMUM_PIXELS
    from memcomp.experiments.output.tables import versions

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

    from memcomp.experiments.animation import Motion, animate
    from memcomp.experiments.video import rate_of, to_frame, write_video

    names = []
    for pair in tqdm(pairs, unit="video", desc="cross identity", disable=not pairs):
        names.append(f"{pair.name.replace('#', '-')}.mp4")
        source, (poses, times) = pair.source, pair.driving_clip(args.video_frames)
        with write_video(folder / names[-1], rate_of(times)) as append:
            moved = animate(host, source, poses, Motion(), args.batch)
            for (pose, result), time in zip(moved, times, strict=True):
                append(to_frame(torch.cat([source, pose, result], dim=-1)), time)
    return names


def default_folder(checkpoint: str) -> Path:
    """Where an evaluation goes if nothing else is said: into the run's folder, or beside the file."""
    path = Path("runs/demo") if checkpoint == "demo" else Path(checkpoint)
    return (path.parent if path.is_file() else path) / "evaluation"
