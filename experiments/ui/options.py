"""What `memcomp ui` is asked for."""

from dataclasses import dataclass

from memcomp.experiments.checkpoints.find import DEMO_HOST


@dataclass(frozen=True)
class UiOptions:
    """What `memcomp ui` is asked for."""

    checkpoints: tuple[str, ...] = (DEMO_HOST,)
    """Trained hosts to choose from: see `read_trained`."""
    address: str = "127.0.0.1"
    """Where the server listens; this machine alone can reach the default."""
    port: int | None = None
    """None = the first free one from 7860 on."""
    seconds: float = 20
    """Length of a driving clip, at most."""
    megabytes: int = 50
    """Size of a file, at most."""
    jobs: int = 2
    """How many run at a time; further ones wait."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
