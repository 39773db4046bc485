"""The `memcomp` command. Nothing but the standard library is imported until a subcommand is chosen."""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from memcomp.experiments.errors import Incomplete, UserError, warn
from memcomp.experiments.files import disk_refusal

# subcommand, a module in commands/ with `add_arguments(parser)` and `run(args)` → one line of help
COMMANDS = {
    "demo": "train a small host with and without the memory and compare the two",
    "prepare": "make clips to train on of raw videos: heads found, followed, cropped",
    "train": "train what a recipe describes",
    "evaluate": "measure a checkpoint on seeded pairs of unseen people",
    "compare": "train two recipes side by side and measure both on the same pairs",
    "benchmark": "measure any number of runs on the same pairs, in one table",
    "report": "make the page of a benchmark anew from the files in its folder",
    "inspect": "look into the memory of a checkpoint: M_o, M_s, attention, gates",
    "animate": "move the face of a picture as a video moves",
    "ui": "a page in the browser: animate, and see what a pixel reads from the memory",
    "convert": "make a checkpoint of upstream ours, or one of ours upstream's",
    "heads": "draw procedural heads: a contact sheet, or clips to train on",
    "recipes": "list the recipes, or print one",
    "speed": "time the memory, hosts, procedural heads, and the start",
}
# modules that a base install (torch and safetensors) lacks, and the extra that brings them
EXTRAS = {
    "train": ("numpy", "yaml", "timm", "torchvision", "imageio", "av", "skimage", "scipy", "tqdm", "matplotlib", "PIL"),
    "report": ("jinja2",),
    "ui": ("gradio", "starlette"),
    "faces": ("dlib", "_dlib_pybind11", "face_recognition_models"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code: 0 done, 2 wrong input, 3 incomplete, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):  # a log or terminal that is not UTF-8: odd signs replaced
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # which torch reads once, as it is imported
    parser, subparsers = _parser()
    warn.cache_clear()
    try:
        if arguments and arguments[0] in COMMANDS:  # only the chosen module is imported, even for --help
            module = importlib.import_module(f"memcomp.experiments.commands.{arguments[0]}")
            module.add_arguments(subparsers[arguments[0]])
        parsed, rest = parser.parse_known_args(arguments)
        if rest and not (hasattr(parsed, "overrides") and all("=" in word and word[0] != "-" for word in rest)):
            subparsers[parsed.command].error(f"unrecognized arguments: {' '.join(rest)}")
        if rest:  # argparse takes a list of words only where it begins, not after an option
            parsed.overrides = [*parsed.overrides, *rest]
        module.run(parsed)
    except Incomplete as error:
        return _fail(str(error), 3)
    except UserError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        extra = next((extra for extra, names in EXTRAS.items() if (error.name or "").split(".")[0] in names), None)
        if extra is None:
            raise
        return _fail(f"`memcomp {arguments[0]}` needs {error.name}: pip install 'memcomp[{extra}]'")
    except KeyboardInterrupt as stop:
        print(f"memcomp: interrupted{f': {stop}' * bool(str(stop))}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `memcomp recipes | head`
        _print_nowhere()
        return 0
    except OSError as error:  # such as a name that is too long
        if error.filename is None and (status := _flushed(error)):
            return status
        refusal, where = disk_refusal(error), error.filename or arguments[0]
        return _fail(f"{where}: cannot be written ({refusal})" if refusal else f"{where}: {error.strerror or error}")
    return _flushed()


def _flushed(after: OSError | None = None) -> int:
    """0 if what was printed goes out, else the exit code, with a line of error; `after` an error that names no file."""
    try:
        print(end="\n" if after else "", flush=True)  # Python forgets what it could not write: only more of it tells
    except BrokenPipeError:
        _print_nowhere()
    except OSError as error:
        _print_nowhere()
        return _fail(f"standard output: cannot be written ({error.strerror}); files were written before", 3)
    return 0


def _print_nowhere() -> None:  # or Python tries again as it ends
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _OneLine(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = _OneLine(prog="memcomp", description="A learned facial memory for talking-head generators.")
    parser.add_argument("--version", action="version", version=f"memcomp {version('memcomp')}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    return parser, {
        name: commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        for name, text in COMMANDS.items()
    }


def _fail(message: str, status: int = 2) -> int:
    print("memcomp: error: " + " ".join(message.split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
