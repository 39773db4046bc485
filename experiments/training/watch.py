"""What a device holds and what its host waits for while something runs: live bytes, synchronisations."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512  # bytes: PyTorch's allocator hands out multiples
# what the host waits for, or whose result's size it must know, wherever its first tensor is on the device
WAITING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"),
    *("equal", "bincount", "_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig"),
}
# what operations make, where PyTorch itself does not tell it without values
SHAPES: dict[str, Callable[..., Any]] = {
    "pin_memory": lambda data, *device: torch.empty_like(data),
    "_pin_memory": lambda data, *device: torch.empty_like(data),
}
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}
MASKS = {torch.bool, torch.uint8}


class Watch(TorchDispatchMode):
    """Adds up the live bytes of a device's tensors, and counts what its host waits for; works on fake tensors, too.

    Only tensors made inside of the context count. What kernels need for themselves is not seen.

    Attributes:
        live: bytes now.
        peak: the most since `begin`.
        waits: since then, name of an operation → how often the host waited in it.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.live, self.peak, self.waits = device, 0, 0, Counter[str]()
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()  # storages on the device
        self._pinned: weakref.WeakSet[Any] = weakref.WeakSet()  # storages of the host that the device reads by itself

    def begin(self) -> None:
        """Forget peak and waits."""
        self.peak, self.waits = self.live, Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note what it holds and waits for."""
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        places = [one.device for one in tensors] + [torch.device(kwargs.get("device") or "cpu")]
        if any(self._is_here(one) for one in places) and self._waits(name, args, kwargs):
            self.waits[name] += 1
        fake = [one for one in tensors if isinstance(one, FakeTensor)]
        if name == "_local_scalar_dense" and fake and fake[0].constant is None:  # a number that nobody has
            return 1.0 if fake[0].dtype.is_floating_point else 0
        if name == "is_pinned" and fake:
            return fake[0].untyped_storage() in self._pinned
        result = SHAPES[name](*args) if fake and name in SHAPES else func(*args, **kwargs)
        pinned = "pin_memory" in name or (name == "_to_copy" and bool(kwargs.get("non_blocking")))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._hold(leaf, pinned)
        return result

    def _is_here(self, device: torch.device) -> bool:
        return device.type == self.device.type

    def _waits(self, name: str, args: Any, kwargs: Any) -> bool:
        if self.device.type == "cpu":  # the host itself
            return False
        if name == "repeat_interleave":
            return kwargs.get("output_size") is None
        if name in INDEXING:  # a mask: how many places it has, the device knows
            return any(isinstance(one, Tensor) and one.dtype in MASKS for one in tree_leaves(args[1]))
        if name == "_to_copy" and kwargs.get("device") is not None:
            device = torch.device(kwargs["device"])
            # PyTorch takes pinned memory where a number goes to the host and nobody is to wait
            return self._copy_waits(args[0], device, bool(kwargs.get("non_blocking")), pinned=not self._is_here(device))
        if name == "copy_":
            free = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
            return self._copy_waits(args[1], args[0].device, free, pinned=args[0].untyped_storage() in self._pinned)
        return name in WAITING

    def _copy_waits(self, data: Tensor, to: torch.device, free: bool, pinned: bool) -> bool:
        """Between host and device only a copy from or to pinned memory that says so (`free`) goes on by itself."""
        if data.device.type == to.type:
            return False
        return not free or not (data.untyped_storage() in self._pinned if self._is_here(to) else pinned)

    def _hold(self, tensor: Tensor, pinned: bool) -> None:
        storage = tensor.untyped_storage()
        if not self._is_here(tensor.device):
            if pinned:
                self._pinned.add(storage)
        elif storage not in self._known:
            size = -(-storage.nbytes() // BLOCK) * BLOCK
            self._known.add(storage)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size
