"""From the demands of a forward pass to proposed symmetries, kind by kind.

What is proposed follows from the labels alone and is verified numerically afterwards, so that a rule that is
too generous costs time but never correctness.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from symdyn_core.params import Params
from symdyn_core.symmetry.kinds import (
    GeneralLinear,
    NormGain,
    Permutation,
    PlaneRotation,
    PositiveRescaling,
    Rotation,
    ScaleInvariance,
    SignFlip,
    Symmetry,
)
from symdyn_core.symmetry.structure.exponents import Exponents
from symdyn_core.symmetry.structure.forward import Trace
from symdyn_core.symmetry.structure.ledger import Ledger, Reading, Source
from symdyn_core.symmetry.structure.solve import Assignment, rows, solve
from symdyn_core.symmetry.translation import MeanShift, Reader, Translation
from symdyn_core.symmetry.units import Axis, Units

Place = tuple[str, int]  # parameter and axis


def propose(trace: Trace, params: Params) -> list[Symmetry]:
    """Return the symmetries that a forward pass suggests, in the order in which it uses the parameters."""
    return _Proposer(trace, params).all()


class _Proposer:
    def __init__(self, trace: Trace, params: Params) -> None:
        self.ledger: Ledger = trace.ledger
        self.params = params
        self.order = {name: place for place, name in enumerate(trace.used)}
        self.labels = [
            label
            for name, axes in self.ledger.leaves.items()
            if name in trace.used
            for axis in axes.values()
            for label in axis.tolist()
        ]
        self.used = trace.used
        self.scales, self.rescalings = solve(self.ledger, self.labels)
        _, self.signs = solve(self.ledger, self.labels, signs=True)
        self.linear_classes, self.self_dual = self._linear_classes()
        self.class_members: dict[int, list[int]] = defaultdict(list)
        for label in self.labels:
            self.class_members[self.linear_classes.find(label)[0]].append(label)
        self.together: dict[int, list[int]] = defaultdict(list)
        for label in self.labels:
            self.together[self.ledger.added.root(label)].append(label)
        self._layouts: dict[int, tuple[object, ...]] = {}
        self.members: dict[int, list[int]] = defaultdict(list)
        for label in self.labels:
            self.members[self.ledger.identity.root(label)].append(label)
        self.in_linear: set[int] = set()  # labels whose factors a general linear group contains
        self.turned: set[int] = set()  # labels whose signs a rotation contains
        self.covered: set[int] = set()  # labels whose permutations and signs a larger group contains

    def all(self) -> list[Symmetry]:
        matrices = [*self.general_linear(), *self.rotations(), *self.planes()]
        found = [
            *self.factors(),
            *matrices,
            *self.sign_flips(),
            *self.permutations(),
            *self.block_permutations(),
            *self.translations(),
        ]
        return sorted(found, key=lambda symmetry: min(self.order[name] for name in symmetry.parameters))

    # -- from labels to axes ------------------------------------------------------------------------------

    def axes_of(
        self, units: Sequence[Sequence[int]], power: Callable[[int], float] = lambda _: 1.0
    ) -> list[Axis]:
        """Return where the labels of some units lie, one axis for each parameter, axis and power."""
        places: dict[tuple[str, int, float], list[list[int]]] = defaultdict(lambda: [[] for _ in units])
        for number, labels in enumerate(units):
            for label in labels:
                origin = self.ledger.origins[label]
                if origin is not None:
                    places[origin.parameter, origin.axis, power(label)][number].append(origin.position)
        axes = []
        for (parameter, axis, exponent), positions in places.items():
            flat = tuple(position for unit in positions for position in sorted(unit))
            whole = len(units) == len(flat) == self._length(parameter, axis) and flat == tuple(
                range(len(flat))
            )
            axes.append(Axis(parameter, axis, None if whole else flat, exponent))
        return sorted(axes, key=lambda place: (self.order[place.parameter], place.axis))

    def _length(self, parameter: str, axis: int) -> int:
        shape = self.params[parameter].shape
        return shape[axis] if shape else 1

    def layout(
        self, labels: Sequence[int], power: Callable[[int], object] = lambda _: 1
    ) -> tuple[object, ...]:
        """Return what two units must have in common to play the same part."""
        counts: dict[tuple[str, int, str], int] = defaultdict(int)
        for label in labels:
            origin = self.ledger.origins[label]
            if origin is not None:
                counts[origin.parameter, origin.axis, str(power(label))] += 1
        return tuple(sorted(counts.items()))

    def first(self, labels: Sequence[int]) -> tuple[int, int, int]:
        """Return the earliest place of a unit, to sort by."""
        origins = [self.ledger.origins[label] for label in labels]
        return min((self.order[o.parameter], o.axis, o.position) for o in origins if o is not None)

    def writer(self, axes: Sequence[Axis]) -> str:
        """Return the name of the layer that the first of some axes belongs to."""
        return layer_name(axes[0].parameter)

    # -- continuous groups --------------------------------------------------------------------------------

    def factors(self) -> Iterator[Symmetry]:
        """Yield rescalings, one for each set of units that are rescaled in the same way."""
        groups: dict[object, list[dict[int, float]]] = defaultdict(list)
        for assignment in self.rescalings:
            exponents = self._simplified(assignment)
            if exponents and not set(exponents) <= self.in_linear:
                exponents = self._oriented(exponents)
                groups[self.layout(list(exponents), exponents.get)].append(exponents)
        for units in groups.values():
            units.sort(key=lambda unit: self.first(list(unit)))
            powers = {label: float(value) for unit in units for label, value in unit.items()}
            axes = self.axes_of([list(unit) for unit in units], lambda label, p=powers: p[label])  # type: ignore[misc]
            yield self._rescaling(len(units), axes, {label for unit in units for label in unit})

    def _rescaling(self, size: int, axes: list[Axis], labels: set[int]) -> PositiveRescaling:
        incoming = tuple(place for place in axes if place.power > 0)
        outgoing = tuple(
            Axis(place.parameter, place.axis, place.index, -place.power) for place in axes if place.power < 0
        )
        units = Units(self.writer(incoming), size, incoming, outgoing)
        if not outgoing:
            return ScaleInvariance(units)
        behind_norm = {place.parameter for place in incoming} & self.ledger.gains
        vectors = all(self.params[place.parameter].ndim == 1 for place in incoming)
        if behind_norm and vectors and not labels & self.ledger.nonlinear:
            return NormGain(units)
        return PositiveRescaling(units)

    def _simplified(self, assignment: Assignment) -> dict[int, float]:
        """Return the exponents; those that fill an axis evenly go to one axis of their parameter."""
        exponents = dict(assignment.exponents)
        for name, counts in self._occupied(exponents).items():
            leaves = self.ledger.leaves[name]
            even = []
            for axis, count in counts.items():
                if count == len(leaves[axis]):
                    values = {exponents[label] for label in leaves[axis].tolist()}
                    if len(values) == 1:
                        even.append((leaves[axis], values.pop()))
            if len(even) > 1:
                total = sum(value for _, value in even)
                for labels, _ in even:
                    for label in labels.tolist():
                        exponents.pop(label, None)
                if total:
                    exponents.update(dict.fromkeys(even[0][0].tolist(), total))
        return exponents

    def _occupied(self, labels: Iterable[int]) -> dict[str, dict[int, int]]:
        """Return how many labels lie along each axis of each parameter."""
        counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for label in labels:
            origin = self.ledger.origins[label]
            if origin is not None:
                counts[origin.parameter][origin.axis] += 1
        return counts

    def _oriented(self, exponents: dict[int, float]) -> dict[int, float]:
        """Return the exponents scaled so that the first parameter writes with power one."""
        first = min(exponents, key=lambda label: self.first([label]))
        return {label: value / exponents[first] for label, value in exponents.items()}

    def _linear_classes(self) -> tuple[Exponents, set[int]]:
        """Return labels that transform alike or inversely, whatever else holds them fixed."""
        classes, self_dual = Exponents(), set()
        for row in rows(self.ledger, signs=False):
            kept = [
                (label, coefficient)
                for label, coefficient in row
                if self.ledger.origins[label] is not None or not self.scales.is_zero(label)
            ]
            # A total that several units share (a norm) says nothing about the single unit.
            if len(kept) != 2 or any(self.ledger.origins[label] is None for label, _ in kept):
                continue
            if abs(kept[0][1]) != abs(kept[1][1]):
                continue
            reduced = classes.reduce(kept)
            if len(reduced) == 1:
                self_dual.add(next(iter(reduced)))
            elif reduced:
                classes.enter(reduced)
        return classes, self_dual

    def general_linear(self) -> Iterator[Symmetry]:
        """Yield one group for each block of units on which only linear maps act."""
        ledger = self.ledger
        classes: dict[int, list[tuple[int, float]]] = defaultdict(list)
        for label in self.labels:
            root, ratio = self.linear_classes.find(label)
            classes[root].append((label, ratio))
        barred = ledger.nonlinear | ledger.squared | ledger.scaled | ledger.fixed
        dual = {self.linear_classes.find(label)[0] for label in self.self_dual}
        blocks: dict[object, list[dict[int, float]]] = defaultdict(list)
        for root, members in classes.items():
            if root in dual or any(label in barred for label, _ in members):
                continue
            exponents = self._oriented(dict(members))
            if any(value < 0 for value in exponents.values()):
                signature = sum(ledger.signature(label) for label in exponents) % 2**64
                blocks[signature, self.layout(list(exponents), exponents.get)].append(exponents)
        for block in blocks.values():
            if len(block) < 2:
                continue
            block.sort(key=lambda unit: self.first(list(unit)))
            powers = {label: float(value) for unit in block for label, value in unit.items()}
            axes = self.axes_of([list(unit) for unit in block], lambda label, p=powers: p[label])  # type: ignore[misc]
            incoming = tuple(place for place in axes if place.power > 0)
            outgoing = tuple(
                Axis(place.parameter, place.axis, place.index) for place in axes if place.power < 0
            )
            units = Units(self.writer(incoming), len(block), incoming, outgoing)
            width_in, width_out = (
                sum(units.rows(self.params, place).shape[1] for place in places)
                for places in (incoming, outgoing)
            )
            self.in_linear.update(powers)
            self.covered.update(powers)
            yield GeneralLinear(units, width_in, width_out)

    def rotations(self) -> Iterator[Symmetry]:
        """Yield one group for each set of units of which only the length is seen."""
        ledger = self.ledger
        gains: dict[Place, set[tuple[str, ...]]] = defaultdict(set)
        entries: list[Reading | Source] = [*ledger.readings, *ledger.sources]
        for entry in entries:
            gains[entry.parameter, entry.axis].add(tuple(dict.fromkeys(entry.gains)))
        read = {(reading.parameter, reading.axis) for reading in ledger.readings}
        groups: dict[object, list[list[int]]] = defaultdict(list)
        for labels in self.members.values():
            if not any(label in ledger.squared for label in labels):
                continue
            if any(label in ledger.unturned or label in ledger.fixed for label in labels):
                continue
            signature = sum(ledger.signature(label) for label in labels) % 2**64
            groups[signature, self.layout(labels)].append(labels)
        for units in groups.values():
            if len(units) < 2:
                continue
            units.sort(key=self.first)
            writers: list[Axis] = []
            readers: list[Axis] = []
            for place in self.axes_of(units):
                if place.parameter in ledger.gains and self.params[place.parameter].ndim == 1:
                    continue
                through = gains.get((place.parameter, place.axis), {()})
                if len(through) != 1 or len(chain := next(iter(through))) > 1:
                    break
                side = readers if (place.parameter, place.axis) in read else writers
                side.append(Axis(place.parameter, place.axis, place.index, gain=chain[0] if chain else None))
            else:
                names = {label for unit in units for label in unit}
                self.covered.update(names)
                self.turned.update(label for label in names if self._is_writer(label, writers))
                yield Rotation(
                    Units(self.writer(writers or readers), len(units), tuple(writers), tuple(readers)),
                    fixes_ones=bool(names & ledger.centred),
                )

    def _is_writer(self, label: int, axes: Sequence[Axis]) -> bool:
        origin = self.ledger.origins[label]
        places = {(place.parameter, place.axis) for place in axes if place.gain is None}
        return origin is not None and (origin.parameter, origin.axis) in places

    def planes(self) -> Iterator[Symmetry]:
        """Yield the rotations of the planes that rotary position codes turn, head by head."""
        groups: dict[object, list[list[int]]] = defaultdict(list)
        partners: dict[int, set[int]] = defaultdict(set)
        for a, b in self.ledger.planes:
            partners[self.linear_classes.find(a)[0]].update((a, b))
        classes: dict[int, list[int]] = defaultdict(list)
        for label in self.labels:
            classes[self.linear_classes.find(label)[0]].append(label)
        for root in partners:
            labels = classes.get(root, [])
            layout = self.layout(labels)
            groups[layout, self._blocks(labels)].append(labels)
        for units in groups.values():
            units.sort(key=self.first)
            axes = tuple(self.axes_of(units))
            if all(len(place.index or ()) % (2 * len(units)) == 0 for place in axes):
                split = tuple(part for place in axes for part in self._pairs(place, len(units)))
                self.covered.update(label for unit in units for label in unit)
                self.turned.update(label for unit in units for label in unit)
                yield PlaneRotation(Units(self.writer(axes), len(units), split, ()))

    def _pairs(self, place: Axis, size: int) -> Iterator[Axis]:
        """Yield an axis on which every plane has several pairs of rows, pair by pair."""
        positions = np.array(place.index).reshape(size, -1)
        pairs = {
            (o.position, p.position)
            for a, b in self.ledger.planes
            if (o := self.ledger.origins[a])
            and (p := self.ledger.origins[b])
            and (o.parameter, o.axis) == (place.parameter, place.axis)
        }
        firsts = {min(pair): max(pair) for pair in pairs}
        columns: list[list[tuple[int, int]]] = []
        for unit in positions.tolist():
            mine = [(position, firsts[position]) for position in unit if firsts.get(position) in unit]
            # A bias or a weight that carries no plane of its own is paired in order.
            columns.append(mine or list(zip(unit[: len(unit) // 2], unit[len(unit) // 2 :], strict=True)))
        for number in range(len(columns[0])):
            flat = tuple(position for unit in columns for position in unit[number])
            yield Axis(place.parameter, place.axis, flat)

    def _blocks(self, labels: Sequence[int]) -> frozenset[int]:
        roots = {
            self.ledger.identity.root(block)
            for label in labels
            for block in self.ledger.parents.get(label, ())
        }
        return frozenset(roots)

    # -- discrete groups ----------------------------------------------------------------------------------

    def sign_flips(self) -> Iterator[Symmetry]:
        """Yield the flips of signs, one for each set of units that flip in the same way."""
        groups: dict[object, list[list[int]]] = defaultdict(list)
        for assignment in self.signs:
            labels = sorted(self._simplified_signs(assignment))
            if labels and not set(labels) <= self.in_linear and not set(labels) & self.turned:
                groups[self.layout(labels)].append(labels)
        for units in groups.values():
            units.sort(key=self.first)
            axes = self.axes_of(units)
            yield SignFlip(Units(self.writer(axes), len(units), tuple(axes), ()))

    def _simplified_signs(self, assignment: Assignment) -> set[int]:
        labels = set(assignment.exponents)
        for name, counts in self._occupied(list(labels)).items():
            leaves = self.ledger.leaves[name]
            full = [
                set(leaves[axis].tolist()) for axis, count in counts.items() if count == len(leaves[axis])
            ]
            for axis in full[: len(full) // 2 * 2]:
                labels -= axis
        return labels

    def permutations(self) -> Iterator[Symmetry]:
        """Yield the reorderings of units that play the same part."""
        groups: dict[object, list[list[int]]] = defaultdict(list)
        for labels in self.members.values():
            if set(labels) <= self.covered or any(label in self.ledger.fixed for label in labels):
                continue
            groups[self.layout(labels), self._blocks(labels)].append(labels)
        for units in groups.values():
            if len(units) > 1:
                units.sort(key=self.first)
                yield self._permutation(units)

    def _permutation(self, units: Sequence[Sequence[int]]) -> Permutation:
        axes = self.axes_of(units)
        return Permutation(Units(self.writer(axes), len(units), tuple(axes), ()))

    def block_permutations(self) -> Iterator[Symmetry]:
        """Yield the reorderings of heads and groups, each with everything that lies in it."""
        children: dict[int, set[int]] = defaultdict(set)
        placed = {self.ledger.added.root(child) for child in self.ledger.parents}
        for child, blocks in self.ledger.parents.items():
            follow = [
                k
                for k in self.members.get(self.ledger.identity.root(child), ())
                if self.ledger.added.root(k) not in placed
            ]
            for block in blocks:
                children[block].update(self.together.get(self.ledger.added.root(child), ()), follow)
        proposed = set()
        for family in self.ledger.families:
            contents = {}
            for block in family:
                labels = {
                    label for label in children.get(block, ()) if self.ledger.origins[label] is not None
                }
                if labels:
                    contents[block] = labels
            key = frozenset(frozenset(labels) for labels in contents.values())
            if len(key) < 2 or key in proposed:
                continue
            proposed.add(key)
            yield from self._block_groups(sorted((sorted(c) for c in key), key=self.first))

    def _block_groups(self, blocks: list[list[int]]) -> Iterator[Permutation]:
        owners: dict[int, set[int]] = defaultdict(set)
        for number, labels in enumerate(blocks):
            for label in labels:
                owners[label].add(number)
        groups: dict[frozenset[int], list[int]] = defaultdict(list)
        for number, labels in enumerate(blocks):
            groups[frozenset().union(*(owners[label] for label in labels))].append(number)
        if any(set(shared) != set(numbers) for shared, numbers in groups.items()):
            return  # blocks overlap without falling into groups
        for numbers in groups.values():
            own = [[label for label in blocks[n] if len(owners[label]) == 1] for n in numbers]
            if len(numbers) > 1 and self._alike(own):
                yield self._permutation(own)
        whole = [sorted({label for n in numbers for label in blocks[n]}) for numbers in groups.values()]
        if len(whole) > 1 and self._alike(whole):
            yield self._permutation(whole)

    def _alike(self, units: Sequence[Sequence[int]]) -> bool:
        return len({self.layout(labels) for labels in units}) == 1 and all(units)

    # -- translations -------------------------------------------------------------------------------------

    def translations(self) -> Iterator[Symmetry]:
        """Yield offsets that are taken back, removed, or multiplied with a sum of zero."""
        yield from self._mean_shifts()
        yield from self._offsets()

    def _mean_shifts(self) -> Iterator[Symmetry]:
        centred = {self.ledger.identity.root(label) for label in self.ledger.centred}
        seen = {self.ledger.identity.root(label) for label in self.ledger.seen}
        dressed = {source.parameter for source in self.ledger.sources if source.gains}
        readings: dict[Place, list[Reading]] = defaultdict(list)
        for reading in self._distinct_readings():
            readings[reading.parameter, reading.axis].append(reading)
        sources = self._distinct_sources()
        for name in self.used:
            value = self.params[name]
            for axis, labels in self.ledger.leaves[name].items():
                roots = {self.ledger.identity.root(label) for label in labels.tolist()}
                if value.shape[axis] < 2 or name in self.ledger.gains or not roots & centred:
                    continue
                if len(self.ledger.leaves[name]) == 1 and name in dressed:
                    continue
                if (name, axis) not in readings and roots & seen:
                    continue
                if (name, axis) in readings and any(
                    label in self.ledger.nonlinear for root in roots for label in self.members[root]
                ):
                    continue
                reads = next(iter(readings.get((name, axis), ())), None)
                blocks: dict[frozenset[int], list[int]] = defaultdict(list)
                for position, label in enumerate(labels.tolist()):
                    blocks[self._blocks([label])].append(position)
                for positions in blocks.values():
                    yield from self._mean_shift(name, axis, tuple(positions), reads, sources)

    def _mean_shift(
        self,
        name: str,
        axis: int,
        positions: tuple[int, ...],
        reading: Reading | None,
        sources: Sequence[Source],
    ) -> Iterator[Symmetry]:
        value = self.params[name]
        chain = tuple(dict.fromkeys(reading.gains)) if reading else ()
        gain = chain[0] if chain else None
        if len(chain) > 1 or (gain is not None and self.params[gain].shape != (value.shape[axis],)):
            return
        whole = len(positions) == value.shape[axis]
        if len(positions) < 2 or (gain is not None and not whole):
            return
        place = Axis(name, axis, None if whole else positions, gain=gain)
        units = Units(layer_name(name), len(positions), (place,), ())
        columns = value.numel() // value.shape[axis]
        shifts = [
            s.parameter
            for s in sources
            if gain is not None and s.gains == chain and self.params[s.parameter].ndim == 1
        ]
        if reading is None or not shifts or value.ndim != 2:
            yield MeanShift(units, columns)
        elif (bias := self._bias_behind(reading, sources)) is not None:
            yield MeanShift(units, columns, offset=shifts[0], bias=bias)

    def _offsets(self) -> Iterator[Symmetry]:
        sources = self._distinct_sources()
        added = self.ledger.added
        offset_free = {added.root(label) for label in self.ledger.offset_free}
        for source in sources:
            if {added.root(label) for label in source.labels.tolist()} & offset_free:
                yield self._translation((source,), ())
        classes: dict[object, list[Source]] = defaultdict(list)
        for source in sources:
            classes[tuple(added.root(label) for label in source.labels.tolist())].append(source)
        for alike in classes.values():
            for one, other in pairwise(sorted(alike, key=lambda source: source.time)):
                if not self._read_between(one, other):
                    yield self._translation((one, other), ())
        yield from self._through_gains(sources)
        for source in sources:
            passed = {
                label
                for known in source.labels.tolist()
                for label in self.members[self.ledger.identity.root(known)]
            }
            carried = set(source.gains) & self.ledger.carried
            if (
                not carried
                and not passed & (self.ledger.nonlinear | self.ledger.gated)
                and (readers := self._readers(source, sources))
            ):
                yield self._translation((source,), readers)

    def _through_gains(self, sources: Sequence[Source]) -> Iterator[Symmetry]:
        """Yield offsets that a gain multiplies before another offset takes them back."""
        classes: dict[object, list[Source]] = defaultdict(list)
        for source in sources:
            classes[tuple(self.ledger.identity.root(label) for label in source.labels.tolist())].append(
                source
            )
        normalised = self.ledger.squared | self.ledger.centred
        for alike in classes.values():
            unit = self.members[self.ledger.identity.root(int(alike[0].labels[0]))]
            if any(label in normalised for label in unit):
                continue
            for one in alike:
                for other in alike:
                    if len(other.gains) == len(one.gains) + 1 and set(one.gains) < set(other.gains):
                        (gain,) = set(other.gains) - set(one.gains)
                        if one.time < other.time and not self._read_between(one, other):
                            yield self._translation((one, other), (), gain)

    def _read_between(self, one: Source, other: Source) -> bool:
        """Whether anything acts on the units after the first source and before the second."""
        unit = self.together[self.ledger.added.root(int(one.labels[0]))]
        times = (time for label in unit for time in self.ledger.read_times.get(label, ()))
        return any(one.time < time < other.time for time in times)

    def _distinct_sources(self) -> list[Source]:
        """Return the first occurrence of every source, cut where one unit occurs twice, as gates do."""
        found: dict[tuple[str, int, int], Source] = {}
        for source in self.ledger.sources:
            pieces: dict[object, list[int]] = defaultdict(list)
            seen: dict[int, int] = defaultdict(int)
            for label in source.labels.tolist():
                root = self.ledger.identity.root(label)
                pieces[seen[root], self._class_layout(label)].append(label)
                seen[root] += 1
            for labels in pieces.values():
                key = (source.parameter, source.axis, labels[0])
                found.setdefault(
                    key, Source(source.parameter, source.axis, np.array(labels), source.gains, source.time)
                )
        return list(found.values())

    def _class_layout(self, label: int) -> tuple[object, ...]:
        root = self.ledger.added.root(label)
        if root not in self._layouts:
            unit = self.members[self.ledger.identity.root(label)]
            self._layouts[root] = (self.layout(self.together[root]), self.layout(unit))
        return self._layouts[root]

    def _readers(self, source: Source, sources: Sequence[Source]) -> tuple[Reader, ...]:
        """Return the weights that read what a source adds, each with the bias behind it."""
        position = {self.ledger.identity.root(int(label)): k for k, label in enumerate(source.labels)}
        readers = []
        for reading in self._distinct_readings():
            if tuple(dict.fromkeys(reading.gains)) != tuple(dict.fromkeys(source.gains)):
                continue
            roots = [self.ledger.identity.root(int(label)) for label in reading.labels]
            if not set(roots) <= set(position):
                # Attention mixes positions, not units: what it reads are the same units in their blocks.
                continue
            bias = self._bias_behind(reading, sources)
            if bias is None:
                return ()
            columns: list[list[int]] = [[] for _ in source.labels]
            for label, root in zip(reading.labels.tolist(), roots, strict=True):
                columns[position[root]].append(self.ledger.origins[label].position)
            if len({len(unit) for unit in columns}) != 1:
                return ()
            index = tuple(place for unit in columns for place in unit)
            readers.append(Reader(Axis(reading.parameter, reading.axis, index), bias))
        return tuple(readers)

    def _bias_behind(self, reading: Reading, sources: Sequence[Source]) -> Axis | None:
        """Return where the bias lies that is added to what a weight has read."""
        biases: dict[int, list[tuple[Source, int]]] = defaultdict(list)
        for other in sorted(sources, key=lambda source: source.time):
            for label in other.labels.tolist():
                biases[self.ledger.added.root(label)].append((other, label))
        found = []
        for label in reading.out_labels.tolist():
            behind = biases[self.ledger.added.root(label)]
            nearest = next((entry for entry in behind if entry[0].time >= reading.time), None)
            if nearest is None:
                return None
            found.append(nearest)
        places = {(source.parameter, source.axis) for source, _ in found}
        if len(places) != 1:
            return None
        ((name, axis),) = places
        return Axis(name, axis, tuple(self.ledger.origins[label].position for _, label in found))  # type: ignore[union-attr]

    def _distinct_readings(self) -> list[Reading]:
        found: dict[tuple[str, int, int, int], Reading] = {}
        for reading in self.ledger.readings:
            found.setdefault(
                (reading.parameter, reading.axis, int(reading.labels[0]), int(reading.out_labels[0])), reading
            )
        return list(found.values())

    def _translation(
        self, sources: Sequence[Source], readers: tuple[Reader, ...], gain: str | None = None
    ) -> Translation:
        axes = []
        for sign, through, source in zip((1.0, -1.0), (None, gain), sources, strict=False):
            index = tuple(self.ledger.origins[label].position for label in source.labels.tolist())
            whole = index == tuple(range(self._length(source.parameter, source.axis)))
            axes.append(Axis(source.parameter, source.axis, None if whole else index, sign, through))
        return Translation(layer_name(sources[0].parameter), len(sources[0].labels), tuple(axes), readers)


def layer_name(parameter: str) -> str:
    """Return the qualified name of the layer that a parameter belongs to; of the model itself, ``model``.

    >>> layer_name("blocks.0.fc.weight"), layer_name("weight"), layer_name("position")
    ('blocks.0.fc', 'model', 'position')
    """
    head, _, tail = parameter.rpartition(".")
    usual = tail.startswith(("weight", "bias", "in_proj", "original"))
    return (head or "model") if usual else parameter
