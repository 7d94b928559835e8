"""Networks on a graph of detectors: what they see, how they train, what is written of them."""

import json
import shutil

import numpy as np
import pytest
import stim
import torch

from symdyn_core.errors import InputError
from symdyn_qec.circuits import memory_circuit, surface_memory
from symdyn_qec.decoder import SymdynDecoder
from symdyn_qec.graph_checkpoint import MODEL, GraphCheckpoint
from symdyn_qec.graph_decoder import CompiledGraphDecoder
from symdyn_qec.graph_reading import CircuitGraph
from symdyn_qec.graph_run import train_graph
from symdyn_qec.graph_shots import OpenShots
from symdyn_qec.graph_training import GraphSettings, GraphTraining, circuit_graph
from symdyn_qec.networks.detector_graph import DetectorGraphNetwork
from symdyn_qec.optimisation import Optimisation
from symdyn_qec.validation import Validation

TINY = {"width": 4, "layers": 1, "batch_size": 32}


def circuits(distance: int = 3) -> list[stim.Circuit]:
    return [surface_memory(distance, 2, p) for p in (0.004, 0.008)]


def graph() -> CircuitGraph:
    return circuit_graph(circuits())


def trained(folder, steps=4, **changes):
    return train_graph(
        circuits(),
        GraphSettings(steps=steps, **TINY),
        folder,
        validation=Validation(2, shots=1024),
        **changes,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trained(folder)
    return folder


class TestNetwork:
    def test_a_detector_is_heard_only_along_pairs_of_the_model(self) -> None:
        layout = graph().layout
        network = DetectorGraphNetwork(layout, width=4, layers=1)
        shots = torch.zeros(1, layout.num_detectors)
        fired = shots.clone()
        fired[0, 0] = 1
        seen = []
        network.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for detectors in (shots, fired):
            network(detectors, torch.zeros(1, 2, layout.num_edges), torch.zeros(1, 3))
        changed = set(torch.nonzero((seen[0] != seen[1]).any(dim=0)[0]).flatten().tolist())
        assert changed == {int(a) for a, b in layout.pairs if b == 0}
        assert len(changed) < layout.num_detectors

    def test_before_training_it_says_what_matching_says(self) -> None:
        layout = graph().layout
        network = DetectorGraphNetwork(layout, width=4, layers=2)
        preference = torch.tensor([[0.5, 0.0, 0.0], [3.0, 1.0, 0.2]])
        fired = torch.ones(2, layout.num_detectors)
        odds = network(fired, torch.ones(2, 2, layout.num_edges), preference)
        assert torch.equal(odds, -preference[:, :1])

    def test_alike_pairs_lie_in_the_same_direction(self) -> None:
        model = circuits(5)[0].detector_error_model(decompose_errors=True)
        layout, place = CircuitGraph(model).layout, model.get_detector_coordinates()
        for group in range(int(layout.pair_groups.max()) + 1):
            pairs = layout.pairs[layout.pair_groups == group]
            steps = {tuple(np.subtract(place[int(b)], place[int(a)]).tolist()) for a, b in pairs}
            assert len(steps) == 1


class TestShots:
    def test_blocks_are_the_same_from_wherever_they_are_started(self) -> None:
        first = OpenShots(graph(), circuits(), seed=1)
        third = OpenShots(graph(), circuits(), seed=1, start=2)
        for own, other in zip(first.block(2), next(iter(third)), strict=True):
            assert torch.equal(own, other)

    def test_workers_change_nothing(self) -> None:
        alone, shared = (OpenShots(graph(), circuits(), seed=1).blocks(workers=workers) for workers in (0, 2))
        for _ in range(3):
            for own, other in zip(next(alone), next(shared), strict=True):
                assert torch.equal(own, other)

    def test_shots_that_matching_is_sure_of_are_left_out(self) -> None:
        circuit = circuits()[0]
        reader = graph().reader(circuit.detector_error_model())
        detectors, observables = circuit.compile_detector_sampler(seed=2).sample(
            4000, separate_observables=True
        )
        seen = reader.read(detectors.view(np.uint8))
        clear = np.ones(4000, bool)
        clear[seen.open] = False
        wrong = (seen.observables != observables)[:, 0]
        assert len(seen.open) < 1500
        assert wrong[clear].sum() <= wrong.sum() / 10
        assert (seen.preference[clear] > seen.preference[seen.open].max()).all()

    def test_where_matching_is_of_no_use_versions_of_belief_propagation_disagree(self) -> None:
        circuit = memory_circuit("color", p=0.005, rounds=3, distance=3)
        known = circuit_graph([circuit])
        assert not known.matched
        detectors, observables = circuit.compile_detector_sampler(seed=2).sample(
            2000, separate_observables=True
        )
        seen = known.reader(circuit.detector_error_model()).read(detectors.view(np.uint8))
        wrong, clear = (seen.observables != observables)[:, 0], np.ones(2000, bool)
        clear[seen.open] = False
        assert 0 < len(seen.open) < 600
        assert wrong[clear].mean() < wrong[seen.open].mean() / 5
        assert seen.edges.shape == (len(seen.open), 2, len(known.split.errors))
        assert set(np.unique(seen.edges[:, 0])) <= {0, 1}


class TestTraining:
    def test_it_learns_what_belief_propagation_does_not_know(self) -> None:
        circuit = memory_circuit("color", p=0.01, rounds=3, distance=3)
        settings = GraphSettings(width=16, layers=2, batch_size=128, steps=150, learning_rate=0.01, warmup=10)
        training = GraphTraining([circuit], settings)
        for _ in training.run():
            pass
        detectors, observables = circuit.compile_detector_sampler(seed=9).sample(
            4000, separate_observables=True
        )
        dem = circuit.detector_error_model()
        seen = training.graph.reader(dem).read(detectors.view(np.uint8))
        trained = GraphCheckpoint.of(training.averaged, training.graph, {})
        found = CompiledGraphDecoder(SymdynDecoder(), trained, dem).predict(detectors)
        before, after = ((part.observables != observables).sum() for part in (seen, found))
        assert after < 0.95 * before

    def test_a_run_that_was_killed_ends_with_the_same_weights(self, tmp_path) -> None:
        class Killed(Exception):
            pass

        def kill(step, loss):
            if step == 3:
                raise Killed

        trained(tmp_path / "whole")
        with pytest.raises(Killed):
            trained(tmp_path / "broken", on_step=kill)
        trained(tmp_path / "broken")
        weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "broken")]
        assert weights[0] == weights[1]

    def test_a_state_without_its_place_in_the_stream_is_refused(self) -> None:
        training = GraphTraining(circuits(), GraphSettings(steps=1, **TINY))
        with pytest.raises(InputError, match="where its stream of shots is"):
            training.restore(Optimisation.state(training), 1)

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (lambda: [], "at least one circuit"),
            (lambda: [surface_memory(3, 2, 0.01), surface_memory(3, 3, 0.01)], "detectors must be"),
            (lambda: [stim.Circuit("M 0")], "must have detectors and observables"),
        ],
        ids=["none", "different", "nothing to decode"],
    )
    def test_circuits_that_cannot_be_trained_on_are_refused(self, made, message) -> None:
        with pytest.raises(InputError, match=message):
            circuit_graph(made())

    @pytest.mark.parametrize(
        "changes",
        [{"width": 0}, {"steps": 0}, {"warmup": -1}, {"learning_rate": float("nan")}, {"average": 1.0}],
        ids=["width", "steps", "warmup", "learning_rate", "average"],
    )
    def test_settings_out_of_range_are_refused(self, changes) -> None:
        with pytest.raises(InputError, match=next(iter(changes))):
            GraphSettings(**changes)

    def test_weak_noise_leaves_too_few_open_shots_for_a_batch(self) -> None:
        training = GraphTraining([surface_memory(3, 2, 1e-5)], GraphSettings(steps=1, width=4, layers=1))
        with pytest.raises(InputError, match="batch_size must be at most the"):
            next(training.run())


class TestCheckpoint:
    def test_it_decodes_its_circuit_split_or_not_and_no_other(self, checkpoint) -> None:
        circuit = surface_memory(3, 2, 0.006)
        decoder = SymdynDecoder(checkpoint)
        detectors, observables = circuit.compile_detector_sampler(seed=2).sample(
            500, separate_observables=True
        )
        whole, split = (
            decoder.compile_decoder_for_dem(dem=circuit.detector_error_model(decompose_errors=way))
            for way in (False, True)
        )
        found = whole.predict(detectors)
        assert np.array_equal(found.doubt, split.predict(detectors).doubt)
        assert (found.observables != observables).mean() < 0.05
        with pytest.raises(InputError, match="detectors must be 16 for .*, got 24"):
            decoder.compile_decoder_for_dem(dem=surface_memory(3, 3, 0.006).detector_error_model())
        with pytest.raises(InputError, match="mechanisms must flip what they flip"):
            decoder.compile_decoder_for_dem(dem=surface_memory(3, 2, 0.006, "X").detector_error_model())

    def test_sinter_gets_observables_and_discards(self, checkpoint) -> None:
        circuit = surface_memory(3, 2, 0.008)
        dem = circuit.detector_error_model()
        detectors = circuit.compile_detector_sampler(seed=2).sample(300, bit_packed=True)
        every = SymdynDecoder(checkpoint).compile_decoder_for_dem(dem=dem).predict(detectors)
        least = float(np.quantile(every.confidence, 0.1))
        compiled = SymdynDecoder(checkpoint, postselect=least).compile_decoder_for_dem(dem=dem)
        answer = compiled.decode_shots_bit_packed(bit_packed_detection_event_data=detectors)
        found = compiled.predict(detectors)
        assert np.array_equal(answer, np.hstack([found.observables, ~found.kept[:, None]]))
        assert np.array_equal(found.kept, every.confidence >= least)
        assert 0 < (~found.kept).sum() < 100

    def test_no_shots_get_no_answers(self, checkpoint) -> None:
        dem = surface_memory(3, 2, 0.008).detector_error_model()
        compiled = SymdynDecoder(checkpoint).compile_decoder_for_dem(dem=dem)
        assert compiled.predict(np.zeros((0, 16), dtype=bool)).observables.shape == (0, 1)

    def test_stronger_noise_than_in_training_is_warned_of(self, checkpoint) -> None:
        dem = surface_memory(3, 2, 0.02).detector_error_model()
        with pytest.warns(UserWarning, match="2.4 times as strong"):
            SymdynDecoder(checkpoint).compile_decoder_for_dem(dem=dem)

    def test_the_run_says_how_it_went(self, checkpoint) -> None:
        written = json.loads((checkpoint / "decoder.json").read_text())
        assert [point["step"] for point in written["training"]["curve"]] == [2, 4]
        assert len(written["training"]["errors_per_shot"]) == 2
        assert {"reliability.svg", "figure.svg", "curve.csv"} <= {path.name for path in checkpoint.iterdir()}

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda folder: (folder / MODEL).write_text("error(0.1) D0 L0\n"), "circuit.sha256"),
            (lambda folder: (folder / MODEL).unlink(), "cannot read"),
            (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "not a safetensors file"),
            (lambda folder: change(folder, "network", "members", 3), "network.members"),
            (lambda folder: change(folder, "network", "width", "4"), "must be a whole number"),
            (lambda folder: change(folder, "network", "kind", "other"), "network.kind"),
            (lambda folder: change(folder, "circuit", "sha256", None), "circuit.sha256"),
        ],
        ids=["model", "no model", "weights", "members", "width", "kind", "digest"],
    )
    def test_damaged_files_are_named(self, checkpoint, tmp_path, damage, message) -> None:
        folder = tmp_path / "copy"
        shutil.copytree(checkpoint, folder)
        damage(folder)
        with pytest.raises(InputError, match=message):
            GraphCheckpoint.load(folder)


def change(folder, part, field, value) -> None:
    path = folder / "decoder.json"
    sidecar = json.loads(path.read_text())
    sidecar[part][field] = value
    path.write_text(json.dumps(sidecar))
