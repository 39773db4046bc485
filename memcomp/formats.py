"""What a file of weights is, told by its first bytes: a download often holds something else than its name says."""

import os
import re
import zipfile
from pathlib import Path
from typing import Literal

PACKED = {  # first bytes → what wrote them: checkpoints inside of these are to be unpacked
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!\x1a\x07": "RAR",
}
OTHERS = {b"\x89HDF\r\n": "HDF5 (Keras)", b"\x93NUMPY": "NumPy", b"GGUF": "GGUF", b"\x89PNG": "PNG", b"%PDF": "PDF"}
MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # after the protocol, what torch.save wrote first before torch 1.6
TAR = (b"sys_info", b"pickle", b"tensors", b"storages")  # in a tar archive as torch wrote them before 0.2
ITSELF = "download the file itself"
UNPACK = "unpack it and give the checkpoint inside"


def weights_format(file: str | os.PathLike[str]) -> Literal["safetensors", "torch"]:
    """Tell by its first bytes whether a file is of safetensors or of `torch.save`; its name does not count.

    Raises:
        ValueError: it is neither: says what it is (an HTML page, a pointer of Git LFS, an archive, …), and the way out.
    """
    with open(file, "rb") as opened:
        head = opened.read(1024)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:  # the length of a JSON, and the JSON
        return "safetensors"
    if found := _other(Path(file), head):
        raise ValueError(f"{file}: expected a checkpoint, found {found}")
    return "torch"


def _other(file: Path, head: bytes) -> str:
    """What a file is, with the way out; nothing if it is of `torch.save`, of which a part may be missing."""
    if not head.strip(b"\0"):
        return f"{'zeros' if head else 'an empty file'}, as a download that broke off leaves; {ITSELF} again"
    if head.startswith(b"PK\x03\x04"):
        return _zip(file)
    if head.startswith(b"\x80"):
        return "" if MAGIC in head[:32] else "a pickle that torch.save did not write; write it anew with that"
    if head[257:262] == b"ustar":
        return "" if head[:100].strip(b"./\0") in TAR else f"a tar archive; {UNPACK}"
    for start, name in PACKED.items():
        if head.startswith(start):
            return f"a file packed by {name}; {UNPACK}"
    for start, name in OTHERS.items():
        if head.startswith(start):
            return f"a file of {name}; expected one of torch.save or safetensors"
    return _text(head) or f"bytes of no known kind; {ITSELF} again"


def _zip(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError):
        return ""  # breaks off: torch says where
    inside = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in inside:
        return "a TorchScript program; expected its weights alone: torch.save(program.state_dict(), FILE)"
    return "" if "data.pkl" in inside else f"a zip archive of {', '.join(names[:3]) or 'nothing'}; {UNPACK}"


def _text(head: bytes) -> str:
    """What a text is, with the way out; nothing if these bytes are no text."""
    text = head.decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")
    if len(text.encode()) < len(head.strip()) - 7 or re.search(r"[\0-\x08\x0e-\x1f]", text):  # 7: a cut letter, a mark
        return ""
    if re.match(r"version https?://\S+\s+(ext-.*\s+)*oid sha256:", text):
        return "a pointer of Git LFS that stands for it; fetch the file itself: git lfs pull"
    if re.match(r"<(!doctype html|!--|html|head|body|script|meta|title)", text, re.IGNORECASE):
        return f"an HTML page, such as a download's warning or a login; open its address in a browser and {ITSELF}"
    kind = "a JSON" if text[:1] in "{[" else "an XML" if text.startswith("<") else "a text"
    return f"{kind} file, perhaps a server's answer, that begins {' '.join(text.split())[:60]!r}; {ITSELF}"
