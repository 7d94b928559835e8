"""Circuits and detector error models from files, and whether a decoder can work with them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import stim

from symdyn_core.errors import InputError

# A mechanism likelier than this is no error any more: its absence is.
MAX_MECHANISM_P = 0.5


def read_circuit(path: str | os.PathLike[str]) -> stim.Circuit:
    """Read a circuit that can be decoded from a Stim file.

    Raises:
        InputError: the file cannot be read or parsed, or the circuit lacks detectors or observables, or some
            of them are not deterministic; one line with the file's name.
    """
    text = _text(path, "a Stim circuit")
    try:
        circuit = stim.Circuit(text)
    except ValueError as error:
        raise InputError(f"{path} is not a Stim circuit: {_first_line(error)}") from error
    for what, count in (("detectors", circuit.num_detectors), ("observables", circuit.num_observables)):
        if count == 0:
            raise InputError(f"{path} has no {what}; a circuit needs detectors and observables to be decoded")
    try:
        circuit.without_noise().detector_error_model()
    except ValueError as error:
        raise InputError(f"{path} cannot be decoded: {_first_line(error)}") from error
    return circuit


def read_dem(path: str | os.PathLike[str], allow_undetectable: bool = False) -> stim.DetectorErrorModel:
    """Read a detector error model that can be decoded from a file in Stim's format.

    Args:
        path: of the file.
        allow_undetectable: as for :func:`check_model`.

    Raises:
        InputError: the file cannot be read or parsed, or the model fails :func:`check_model`; one line with
            the file's name.
    """
    text = _text(path, "a detector error model")
    try:
        model = stim.DetectorErrorModel(text)
    except (ValueError, IndexError) as error:  # Stim's answer to an unknown instruction is an IndexError
        raise InputError(f"{path} is not a detector error model: {_first_line(error)}") from error
    for what, count in (("detectors", model.num_detectors), ("observables", model.num_observables)):
        if count == 0:
            raise InputError(f"{path} has no {what}; a model needs detectors and observables to be decoded")
    check_model(model, str(path), allow_undetectable)
    return model


def error_model(circuit: stim.Circuit, name: str, graphlike: bool = False) -> stim.DetectorErrorModel:
    """Return the detector error model that decoders of a circuit work with.

    Args:
        circuit: with deterministic detectors and observables.
        name: of the circuit, for messages.
        graphlike: whether to split every mechanism into parts of at most two detectors, as matching needs.

    Raises:
        InputError: a detector or observable is not deterministic, or a mechanism cannot be split.

    Matching can work with any model that this returns, other decoders with those that pass
    :func:`check_model`.

    >>> from symdyn_qec.circuits import repetition_memory
    >>> error_model(repetition_memory(3, 1, 0.01), "example", graphlike=True).num_detectors
    4
    """
    try:
        model = circuit.detector_error_model(approximate_disjoint_errors=True)
    except ValueError as error:
        raise InputError(f"{name} has no detector error model: {_first_line(error)}") from error
    if not graphlike:
        return model
    try:
        return circuit.detector_error_model(approximate_disjoint_errors=True, decompose_errors=True)
    except ValueError as error:
        raise InputError(
            f"{name} cannot be decoded by matching: some of its errors flip more than two detectors "
            "and do not split into pairs"
        ) from error


def check_model(model: stim.DetectorErrorModel, name: str, allow_undetectable: bool = False) -> None:
    r"""Raise InputError unless every decoder can work with a detector error model.

    Two things are refused. A mechanism that is likelier than not, whose absence would be the error: matching
    copes below certainty, belief propagation and what stands on it start from its sign. And one that flips an
    observable and no detector, about which no decoder can do anything: it is a floor below everybody's
    failure rate; allow it where that is what you want to see. Mechanisms of probability zero and those that
    flip nothing are harmless.

    Args:
        model: the model.
        name: of the model, for messages.
        allow_undetectable: whether mechanisms may flip observables alone.

    >>> check_model(stim.DetectorErrorModel("error(0.01) D0\nerror(0.001) L0"), "example")
    Traceback (most recent call last):
        ...
    symdyn_core.errors.InputError: example must have no errors that flip observables and no ...
    """
    undetectable, rate = undetectable_errors(model)
    if undetectable and not allow_undetectable:
        raise InputError(
            f"{name} must have no errors that flip observables and no detector, which no decoder can see, "
            f"got {undetectable}, {rate:.2g} a shot"
        )
    likeliest = max((error.probability for error in _errors(model)), default=0.0)
    if likeliest > MAX_MECHANISM_P:
        raise InputError(
            f"{name} must have errors of probability at most {MAX_MECHANISM_P}, got {likeliest:g}"
        )


def undetectable_errors(model: stim.DetectorErrorModel) -> tuple[int, float]:
    r"""Return how many mechanisms flip observables and no detector, and how many a shot has on average.

    >>> undetectable_errors(stim.DetectorErrorModel("error(0.25) L0\nerror(0.25) D0 L0\nerror(0.5) L0 L1"))
    (2, 0.75)
    """
    found = [error for error in _errors(model) if error.observables and not error.detectors]
    return sum(error.times for error in found), sum(error.probability * error.times for error in found)


class _Error(NamedTuple):
    probability: float
    detectors: set[int]
    observables: set[int]
    times: int


def _errors(model: stim.DetectorErrorModel) -> Iterator[_Error]:
    """Yield the mechanisms that can happen, those in a repeat block once and with their number."""
    for instruction in model:
        if instruction.type == "repeat":
            for error in _errors(instruction.body_copy()):
                yield error._replace(times=error.times * instruction.repeat_count)
        elif instruction.type == "error" and (probability := instruction.args_copy()[0]):
            detectors: set[int] = set()
            observables: set[int] = set()
            for target in instruction.targets_copy():
                if target.is_relative_detector_id():
                    detectors ^= {target.val}
                elif target.is_logical_observable_id():
                    observables ^= {target.val}
            yield _Error(probability, detectors, observables, 1)


def _text(path: str | os.PathLike[str], what: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not {what}: it is not text") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
