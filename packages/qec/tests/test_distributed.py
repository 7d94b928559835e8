"""Training in several processes, which are real ones here: what is equal, what is shared, who writes."""

import itertools
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from symdyn_core.errors import InputError
from symdyn_qec import distributed, graph_shots, shot_stream
from symdyn_qec.checkpoint import Checkpoint
from symdyn_qec.circuits import surface_memory
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.distributed import Processes, own_seed, share
from symdyn_qec.graph_checkpoint import GraphCheckpoint
from symdyn_qec.graph_training import GraphSettings, GraphTraining
from symdyn_qec.run_folder import CURVE, FIGURE, STATE
from symdyn_qec.training import Settings, Training
from symdyn_qec.training_run import RELIABILITY

TRAIN = ("-m", "symdyn_core.commands.main", "qec", "train")
TINY = ("--width=4", "--layers=1", "--rounds=2", "--batch-size=32", "--steps=3", "--validate-every=2")
CHECK = ("--validate-shots=16", "--no-compare")


def torchrun(*arguments, count=2):
    """Run a script or a module in several processes on this machine, at a free port."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=240
    )


def two_processes(monkeypatch, rank):
    monkeypatch.setattr(distributed, "processes", lambda: Processes(rank, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "kind"),
    [(("--code=bb72",), Checkpoint), (("--code=surface", "--distance=3", "--p=0.006"), GraphCheckpoint)],
)
def test_the_command_trains_in_two_processes_and_speaks_once(code, kind, tmp_path):
    ran = torchrun(*TRAIN, *code, *TINY, *CHECK, "--out", tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("96 shots in") == ran.stdout.count("\n") == 1
    for line in ("step 2: loss", "step 3: loss", "wrote the checkpoint"):
        assert ran.stderr.count(line) == 1
    assert {CURVE, FIGURE, STATE, RELIABILITY, "decoder.json"} <= {path.name for path in tmp_path.iterdir()}
    assert len((tmp_path / CURVE).read_text().splitlines()) == 3
    weights = kind.load(tmp_path).network.state_dict().values()
    assert all(value.isfinite().all() for value in weights)


@pytest.mark.slow
def test_what_is_refused_is_said_once(tmp_path):
    ran = torchrun(*TRAIN, "--code=bb72", *TINY, *CHECK, "--batch-size=48", "--out", tmp_path)
    assert ran.returncode != 0
    assert ran.stderr.count("error: batch_size must be a multiple of 32 in 2 processes, got 48") == 1
    assert ran.stderr.count("\nerror: ") + ran.stderr.startswith("error: ") == 1
    assert not any(tmp_path.iterdir())


# In each of two processes: assertions that stop both where one fails, and what a single process must find.
SCRIPT = """
import itertools, sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from symdyn_core.errors import InputError
from symdyn_qec import graph_shots, shot_stream
from symdyn_qec.circuits import surface_memory
from symdyn_qec.codes import bivariate_bicycle
from symdyn_qec.distributed import from_first, joined, least, processes
from symdyn_qec.graph_training import GraphSettings, GraphTraining
from symdyn_qec.optimisation import Optimisation
from symdyn_qec.run_folder import run_in_folder
from symdyn_qec.training import Settings, Training

graph_shots.SHOTS_AT_ONCE = shot_stream.SHOTS_AT_ONCE = 256  # for speed
folder = Path(sys.argv[1])


def everywhere(value):
    found = [None] * processes().world
    dist.all_gather_object(found, value)
    return found


def equal(states):
    return all(torch.equal(states[0][name], state[name]) for state in states for name in states[0])


def refuse():
    raise InputError("no")


def linear():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(6.0).view(2, 3) / 6), layer.bias.fill_(0.5)
    return layer


with joined("cpu") as device:
    rank, world = processes()
    assert (world, device, everywhere(rank)) == (2, "cpu", [0, 1])
    assert least(5 + rank, torch.device("cpu")) == 5
    assert from_first(lambda: f"made in {rank}") == "made in 0"
    try:
        from_first(refuse)
        raise AssertionError
    except InputError as error:
        assert str(error) == "no"

    # The step is that of the mean loss; clipping at 0.1 comes after the mean, for both gradients are larger.
    shots = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 0.0, 1.0]])
    optimisation = Optimisation(linear(), linear(), average=0.5, clip=0.1)
    for _ in range(3):
        optimisation.advance(optimisation.network(shots[rank]).square().sum(), rate=0.1)
    torch.save(optimisation.state(), folder / f"mean{rank}.pt")

    def made(kind):
        if kind == "torus":
            settings = Settings(rounds=2, width=4, layers=1, batch_size=32, steps=4)
            return Training(bivariate_bicycle("bb72"), settings)
        settings = GraphSettings(width=4, layers=1, batch_size=32, steps=4)
        return GraphTraining([surface_memory(3, 3, 0.006)], settings)

    def go(training, out, losses):
        heard = []
        curve, _ = run_in_folder(
            training, losses, out, identity={"batch_size": 32}, steps=4, batch_size=32, every=2, noise="",
            test=lambda: 3 if rank == 0 else refuse(), tested=20, on_step=lambda *step: heard.append(step),
        )
        assert bool(heard) == (rank == 0) and curve[-1].failures == 3
        return curve

    for kind in ("torus", "graph"):
        whole = made(kind)
        losses = everywhere(list(whole.run()))
        assert losses[0] != losses[1]  # of other shots
        assert equal(everywhere(whole.state()))  # to the last bit
        half, rest = made(kind), made(kind)
        go(half, folder / kind, lambda: itertools.islice(half.run(), 2))
        assert len(go(rest, folder / kind, rest.run)) == 2
        assert all(equal([whole.state(), state]) for state in everywhere(rest.state()))
        if rank == 0:
            torch.save(whole.state(), folder / f"{kind}.pt")
    print(f"done in {rank}")
"""


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """Return what two processes leave behind after all assertions in them, by name."""
    folder = tmp_path_factory.mktemp("distributed")
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    ran = torchrun(script, folder)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "done in 0\n"
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


@pytest.mark.slow
def test_gradients_are_averaged(states):
    weight = torch.arange(6.0).view(2, 3) / 6
    with torch.random.fork_rng():
        layer = torch.nn.Linear(3, 2)
    layer.load_state_dict({"weight": weight, "bias": torch.full((2,), 0.5)})
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, betas=(0.9, 0.98), weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        shots = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 0.0, 1.0]])
        layer(shots).square().sum(dim=1).mean().backward()
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 0.1)
        optimizer.step()
    for rank, (name, value) in itertools.product((0, 1), layer.state_dict().items()):
        # float32; the order of sums differs
        torch.testing.assert_close(states[f"mean{rank}"][f"network.{name}"], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torus", "graph"])
def test_two_processes_learn_from_other_shots_and_one_may_go_on(states, kind, monkeypatch):
    for stream in (graph_shots, shot_stream):
        monkeypatch.setattr(stream, "SHOTS_AT_ONCE", 256)
    alone, later = (training(kind) for _ in range(2))
    list(alone.run())
    found = states[kind]
    assert any((alone.state()[name] != value).any() for name, value in found.items() if name != "stream")
    later.restore(found, 3)
    assert len(list(later.run())) == 1


def training(kind):
    if kind == "torus":
        settings = Settings(rounds=2, width=4, layers=1, batch_size=32, steps=4)
        return Training(bivariate_bicycle("bb72"), settings)
    return GraphTraining(
        [surface_memory(3, 3, 0.006)], GraphSettings(width=4, layers=1, batch_size=32, steps=4)
    )


def test_a_batch_is_shared_evenly_or_refused(monkeypatch):
    assert share(33) == 33
    two_processes(monkeypatch, rank=1)
    assert share(64, 16) == 32
    with pytest.raises(InputError, match="multiple of 32 in 2 processes, got 48"):
        Training(bivariate_bicycle("bb72"), Settings(rounds=2, width=4, layers=1, batch_size=48))
    with pytest.raises(InputError, match="multiple of 2 in 2 processes, got 33"):
        GraphTraining([surface_memory(3, 3, 0.006)], GraphSettings(width=4, layers=1, batch_size=33))


def test_every_process_has_a_seed_of_its_own(monkeypatch):
    assert own_seed(7) == 7
    seeds = {7}
    for rank in (0, 1):
        two_processes(monkeypatch, rank)
        seeds.add(own_seed(7))
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("device", "message"), [("cuda:1", "must be cuda, of which"), ("cuda", "CUDA device for every process")]
)
def test_devices_are_one_for_each_process(monkeypatch, device, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=message):
        distributed._own_device(device, 1)
    assert str(distributed._own_device("cpu", 1)) == "cpu"
