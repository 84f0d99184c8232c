"""Tensors into a network: compared before anything is copied, and whatever nothing takes is named.

No tensor is touched before its shape agrees with the network's: a file of a kilobyte can claim 10¹² elements.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from ...errors import WeightsError
from ...remarks import remark
from .matching import Match, best_match, common_beginning, is_beside_the_network, tensors_of


def load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    origin: str,
    spare: Collection[str] = (),
    exact: bool = False,
) -> dict[str, Tensor]:
    """Copy named tensors into a module, all or nothing.

    What the file's names begin with is found by what fits (see `best_match`), and names that torchvision has changed
    since it published its files are brought up to date. Counters of batches may be missing. A head's, a loss's and
    another network's tensors are left over.

    Args:
        module: what to fill.
        state: the tensors.
        origin: what an error message calls their source.
        spare: names that may be there and are not needed.
        exact: names must be the module's own, and nothing may be left over.

    Returns:
        What is left over and is not `spare`, for the caller to use or to name (`say_what_is_left`).
    """
    expected = tensors_of(module)
    if exact:
        inside = {name: tensor for name, tensor in state.items() if name in expected}
        match = Match(inside, {name: tensor for name, tensor in state.items() if name not in expected})
    else:
        match = best_match(module, state)
    left = {name: tensor for name, tensor in match.left.items() if name not in spare}
    superfluous = [n for n in left if exact or not (n in match.strays or is_beside_the_network(n, expected))]
    _refuse_misfits(match, expected, state, origin=origin, superfluous=superfluous)
    with torch.no_grad():
        for name, tensor in match.tensors.items():
            expected[name].copy_(tensor)
    if match.rivals:
        taken = f"{match.place}.{match.prefix}".strip(".") or "the top"
        remark(
            f"{origin}: {1 + len(match.rivals)} networks in it fit; the one under {taken!r} is taken, not that under "
            f"{match.rivals[0]!r}; save the one you want by itself"
        )
    return left


def _refuse_misfits(
    match: Match,
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    *,
    origin: str,
    superfluous: list[str],
) -> None:
    matched = match.tensors
    missing = [name for name in expected if name not in matched and not name.endswith("num_batches_tracked")]
    wrong = [
        f"{name} is {_kind(tensor)}, expected {_kind(expected[name])}"
        for name, tensor in matched.items()
        if not (
            tensor.layout == torch.strided
            and tensor.device.type == "cpu"
            and not tensor.is_quantized
            and not tensor.is_complex()
            and tensor.is_floating_point() == expected[name].is_floating_point()
            and tensor.shape == expected[name].shape
        )
    ]
    hardly = 2 * (len(matched) - len(wrong)) < len(expected)  # a few names may be alike by chance
    advice = _why_missing(missing, match, state, by_chance=hardly)
    if hardly:
        _refuse(origin, missing, "tensors are missing", advice=advice)
    _refuse(origin, wrong, "tensors do not fit the architecture")
    _refuse(origin, missing, "tensors are missing", advice=advice)
    _refuse(origin, superfluous, "tensors have no place in the architecture")
    _refuse(
        origin, [n for n, t in matched.items() if not bool(torch.isfinite(t).all())], "tensors hold NaN or infinity"
    )


def say_what_is_left(left: Collection[str], *, origin: str) -> None:
    """A remark about tensors of a file that nothing takes."""
    names = [name for name in left if not name.endswith(("num_batches_tracked", "n_averaged"))]
    if names:
        remark(
            f"{origin}: {len(names)} of its tensors have no place in the network and are left out, such as "
            f"{', '.join(names[:3])}",
            stacklevel=4,
        )


def _why_missing(missing: list[str], match: Match, state: Mapping[str, Tensor], *, by_chance: bool) -> str:
    """A hint: names that the file has instead of the missing ones, and a remedy."""
    if match.tensors and not by_chance:
        at = f" (its names begin with {match.prefix!r})" if match.prefix else ""
        return f"; is this another architecture, or another layer?{at}"
    begins, first = common_beginning(state), next(iter(state), "")
    there = f"it has {first!r}, expected {next(iter(missing), '')!r}"
    if not begins:
        return f"; hardly a name in it fits: {there}; save the state_dict() of the network itself"
    return (
        f"; hardly a name in it fits: {there}, and all of its names begin with {begins!r}; save the network alone, "
        f"torch.save({{k.removeprefix({begins!r}): v for k, v in state.items()}}, FILE)"
    )


def _kind(tensor: Tensor) -> str:
    kind = "quantised " * tensor.is_quantized + "sparse " * (tensor.layout != torch.strided)
    return f"{kind}{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}{' without values' * tensor.is_meta}"


def _refuse(origin: str, names: list[str], reason: str, *, advice: str = "") -> None:
    if names:
        some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise WeightsError(f"{origin}: {len(names)} {reason} ({some}){advice}")
