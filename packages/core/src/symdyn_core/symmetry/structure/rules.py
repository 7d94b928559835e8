"""What each operation of a forward pass demands of the transformations of its inputs and weights.

One rule per kind of operation: entries that are only moved carry their labels along (by running the same
operation on the labels); a sum demands that its summands transform alike; a product adds exponents; a
contraction demands that its summands' exponents add up to the same; a function of single entries is asked,
by running it, whether it is homogeneous, odd, even or linear. An operation without a rule lets nothing
through and is reported.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from symdyn_core.symmetry.structure import (
    contractions,
    convolutions,
    norms,
    pointwise,
    products,
    reductions,
    sums,
)
from symdyn_core.symmetry.structure.ledger import Term
from symdyn_core.symmetry.structure.state import DataDependent, State
from symdyn_core.symmetry.structure.terms import tensors_in

Rule = Callable[[State, Any, Any, Any, Any], None]
RULES: dict[str, Rule] = {
    "embedding": contractions.embedding,
    "masked_fill": pointwise.masked_fill,
    "add": sums.add,
    "sub": sums.add,
    "rsub": sums.add,
    "mul": products.mul,
    "div": products.mul,
    "addmm": contractions.addmm,
    "baddbmm": contractions.baddbmm,
    "mm": contractions.mm,
    "bmm": contractions.bmm,
    "mv": contractions.mv,
    "dot": contractions.dot,
    "convolution": convolutions.convolution,
    "native_batch_norm": norms.batch_norm,
    "cudnn_batch_norm": norms.batch_norm,
    "miopen_batch_norm": norms.batch_norm,
    "native_batch_norm_legit": norms.batch_norm_legit,
    "native_batch_norm_legit_functional": norms.batch_norm_legit,
    "native_layer_norm": norms.layer_norm,
    "fused_rms_norm": norms.rms_norm,
    "native_group_norm": norms.group_norm,
    "softmax": norms.softmax,
    "log_softmax": norms.softmax,
    "safe_softmax": norms.softmax,
    "prelu_kernel": pointwise.prelu,
    "weight_norm_interface": products.weight_norm,
    "where": pointwise.where,
}
MOVES = frozenset(
    [
        "t",
        "transpose",
        "permute",
        "expand",
        "unsqueeze",
        "squeeze",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "unbind",
        "alias",
        "detach",
        "clone",
        "flip",
        "roll",
        "repeat",
        "index_select",
        "narrow",
        "diagonal",
        "unfold",
        "index",
        "cat",
        "stack",
        "constant_pad_nd",
        "unsafe_split",
        "unsafe_split_with_sizes",
        "unsafe_chunk",
        "chunk",
        "contiguous",
        "movedim",
    ]
)
RESHAPES = frozenset(["view", "_unsafe_view", "reshape", "_reshape_alias", "flatten"])
SAME = frozenset(["_to_copy", "to", "lift_fresh", "lift_fresh_copy", "native_dropout", "dropout", "copy"])
MEANS = frozenset(
    [
        "sum",
        "mean",
        "nansum",
        "amax",
        "amin",
        "logsumexp",
        "std",
        "var",
        "var_mean",
        "norm",
        "linalg_vector_norm",
        "prod",
    ]
)
POOLS = frozenset(
    [
        "max_pool1d",
        "max_pool2d",
        "max_pool2d_with_indices",
        "max_pool3d_with_indices",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool3d",
        "adaptive_max_pool2d",
        "mkldnn_max_pool2d",
        "upsample_nearest2d",
        "upsample_nearest1d",
        "upsample_bilinear2d",
    ]
)
CREATES = frozenset(
    [
        "zeros",
        "ones",
        "full",
        "empty",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "arange",
        "scalar_tensor",
        "rand",
        "randn",
        "eye",
        "triu_indices",
        "tril_indices",
        "new_empty_strided",
    ]
)


def apply(state: State, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Enter what one operation demands and attach terms to what it returns."""
    state.ledger.time += 1
    name = func._overloadpacket.__name__
    state.counts[name] += 1
    plain = name.rstrip("_") if name.endswith("_") and not name.startswith("__") else name
    touched = [value for value in tensors_in((args, kwargs)) if state.of(value) is not None]
    decided = [
        result for result in tensors_in(out) if not (result.is_floating_point() or result.is_complex())
    ]
    if plain in ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal") and touched:
        raise DataDependent(plain)
    if not touched or plain in CREATES:
        for result in tensors_in(out):
            state.set(result, None)
        return
    if decided and len(decided) == len(tensors_in(out)):
        for result in decided:  # comparisons and positions: depend on the parameters, carry no units
            state.set(result, [])
        return
    state.used.update({state.raw[id(value)]: None for value in touched if id(value) in state.raw})
    rule = RULES.get(plain.lstrip("_"))
    if plain in (MOVES | RESHAPES) and isinstance(args[0], Tensor) and id(args[0]) in state.raw:
        state.raw.update({id(result): state.raw[id(args[0])] for result in tensors_in(out)})
    if plain in MOVES:
        move(state, func, args, kwargs, out)
    elif plain in RESHAPES:
        shape = out.shape
        state.set(out, [t.moved(t.ids.reshape(shape)) for t in state.of(args[0]) or ()])
    elif plain in SAME:
        result = out[0] if isinstance(out, tuple | list) else out
        state.set(result, state.of(args[1] if plain == "copy" else args[0]))
    elif rule is not None:
        rule(state, func, args, kwargs, out)
    elif plain in MEANS:
        reductions.reduce(state, plain, args, kwargs, out)
    elif plain in POOLS:
        reductions.pool(state, plain, args, out)
    elif torch.Tag.pointwise in func.tags and len(touched) == 1:
        pointwise.single(state, func, args, kwargs, out, touched[0])
    elif torch.Tag.pointwise in func.tags and all(len(state.of(value) or ()) == 1 for value in touched):
        pointwise.alike(state, touched, out)
    else:
        state.opaque(plain, touched, out)


def finish(state: State, outputs: Tensor) -> None:
    """Enter that the outputs must stay as they are."""
    terms = state.of(outputs) or []
    state.ledger.demand_terms(terms)
    for marked in (state.ledger.fixed, state.ledger.scaled, state.ledger.unturned):
        state.ledger.mark(marked, terms)


def move(state: State, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Carry labels along as the entries are moved."""
    sources = tensors_in(args[0])
    lists = [state.of(value) for value in sources]
    longest = max((terms for terms in lists if terms is not None), key=len, default=[])
    results: list[list[Term]] = [[] for _ in tensors_in(out)]
    for k, model in enumerate(longest):
        pieces = []
        for value, terms in zip(sources, lists, strict=True):
            mine = terms[k] if terms is not None and k < len(terms) else None
            if mine is not None and (mine.scale, mine.sign) != (model.scale, model.sign):
                state.ledger.demand_terms([mine, model] if mine.ids.shape == model.ids.shape else [mine])
            pieces.append(torch.zeros(value.shape, dtype=torch.long) if mine is None else mine.ids)
        first = pieces if isinstance(args[0], tuple | list) else pieces[0]
        rest = args[1:]
        if func._overloadpacket.__name__ == "constant_pad_nd":
            rest = (rest[0], 0)
        moved = func(first, *rest, **{key: v for key, v in kwargs.items() if key != "memory_format"})
        for place, ids in enumerate(tensors_in(moved)):
            results[place].append(model.moved(ids))
    for value, terms in zip(tensors_in(out), results, strict=True):
        state.set(value, terms)
