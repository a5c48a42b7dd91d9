"""Rows of all ranks on every rank, as one process would have them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["gather_arrays"]


def gather_arrays(
    arrays: Mapping[str, NDArray[np.generic]], *, index: str = "index"
) -> dict[str, NDArray[np.generic]]:
    """All ranks' rows on every rank, in the order one process would have them.

    Every rank calls it with the same names, in the same order, and equal types; lengths may
    differ. Without a process group the rows are only sorted. No pickle is involved.

    Args:
        arrays: numeric [n] or [n, D]; one of them is the row number.
        index: its name; a row that several ranks hold is kept once.

    Returns:
        The arrays, rows sorted by `index`.
    """
    import torch
    import torch.distributed as dist

    gathered = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    if dist.is_initialized() and dist.get_world_size() > 1:
        on_gpu = dist.get_backend() == "nccl"
        device = (
            torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        )
        own = torch.tensor([len(gathered[index])], device=device)
        sizes = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, own)
        lengths = [int(size) for size in sizes]
        for name, values in gathered.items():
            padded = torch.zeros(
                (max(lengths), *values.shape[1:]),
                device=device,
                dtype=torch.from_numpy(values[:0]).dtype,
            )
            padded[: len(values)] = torch.from_numpy(values).to(device)
            parts = [torch.empty_like(padded) for _ in lengths]
            dist.all_gather(parts, padded)
            rows = [part[:size] for part, size in zip(parts, lengths, strict=True)]
            gathered[name] = torch.cat(rows).cpu().numpy()
    order = np.unique(gathered[index], return_index=True)[1]
    return {name: values[order] for name, values in gathered.items()}
