"""Fashion-MNIST: read from its files or refused in one line, and what the reports say of a CNN on it."""

import copy
import gzip

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch.nn.functional import cross_entropy

from symdyn_core.commands import main
from symdyn_core.commands.examples import EXAMPLES, fashion
from symdyn_core.dynamics.curvature import Curvature
from symdyn_core.dynamics.noise_measurement import noise_report
from symdyn_core.dynamics.stability_report import stability_report
from symdyn_core.errors import InputError
from symdyn_core.random import numpy_generator
from symdyn_core.study.runner import single_threaded

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def idx(array, kind=8):
    """The bytes of an idx file, header first."""
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, kind, array.ndim]) + lengths + array.tobytes()


def packed(content):
    # Without the time of day, so that all processes of a parallel run collect the same tests.
    return gzip.compress(content, mtime=0)


def clothes(n, side=28, classes=10):
    generator = numpy_generator(0, "clothes", str(n))
    images = generator.integers(0, 256, (n, side, side), dtype=np.uint8)
    return images, generator.integers(0, classes, n, dtype=np.uint8)


def train(epochs, seed=0):
    losses = []
    with single_threaded():
        return EXAMPLES["fashion"].build(seed, epochs, losses.append), losses


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The four files, with 70 and 30 images of noise."""
    for part, n in (("train", 70), ("t10k", 30)):
        images, labels = clothes(n)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(packed(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(packed(idx(labels)))
    monkeypatch.setenv(fashion.VARIABLE, str(tmp_path))
    return tmp_path


def test_files_give_back_what_was_written(folder):
    for part, n in (("train", 70), ("t10k", 30)):
        for read, written in zip(fashion.read_images(folder, part), clothes(n), strict=True):
            assert read.dtype == np.uint8
            np.testing.assert_array_equal(read, written)


def test_the_network_is_judged_on_the_test_images(folder):
    target, _ = train(epochs=1)
    images, labels = clothes(30)
    assert target.inputs.shape == (30, 1, 28, 28)
    number = {image.tobytes(): k for k, image in enumerate(images)}
    seen = (target.inputs[:, 0] * 255).round().to(torch.uint8).numpy()
    order = [number[image.tobytes()] for image in seen]
    assert sorted(order) == list(range(30))
    np.testing.assert_array_equal(target.targets.numpy(), labels[order])


def test_the_seed_decides_everything(folder):
    target, losses = train(epochs=2)
    again, same = train(epochs=2)
    other, _ = train(epochs=2, seed=1)
    weights, same_weights, other_weights = (
        torch.cat([p.detach().flatten() for p in t.model.parameters()]) for t in (target, again, other)
    )
    assert len(losses) == 2
    assert losses == same
    assert torch.equal(weights, same_weights)
    assert not torch.equal(weights, other_weights)
    assert torch.equal(target.inputs, again.inputs)
    assert not torch.equal(target.inputs, other.inputs)
    assert not target.model.training


DAMAGED = {
    "cut off": (
        IMAGES,
        packed(idx(clothes(70)[0]))[:-500],
        "must be a whole gzip file: Compressed file ended",
    ),
    "wrong checksum": (
        IMAGES,
        packed(idx(clothes(70)[0]))[:-8] + bytes(8),
        "must be a whole gzip file: CRC check",
    ),
    "garbled": (IMAGES, packed(b"")[:10] + b"\xff" * 20, "must be a whole gzip file: Error -3"),
    "not packed": (IMAGES, b"<html>not found</html>", "must be a whole gzip file: Not a gzipped file"),
    "empty": (IMAGES, packed(b""), "must hold an idx array of bytes, got an empty file"),
    "three bytes": (
        IMAGES,
        packed(b"\0\0\x08"),
        "must hold an idx array of bytes, got 3 bytes that start with",
    ),
    "no shape": (IMAGES, packed(b"\0\0\x08\x03\0\0\0\0"), "idx array of bytes, got 8 bytes that start with"),
    "text": (IMAGES, packed(b"label,pixel1,pixel2"), "got 19 bytes that start with b'labe'"),
    "wrong kind": (IMAGES, packed(idx(np.zeros((2, 28, 28)), 14)), "start with b'\\x00\\x00\\x0e\\x03'"),
    "a byte short": (IMAGES, packed(idx(clothes(70)[0])[:-1]), "shape (70, 28, 28), got 54879 entries"),
    "wrong side": (IMAGES, packed(idx(clothes(70, side=32)[0])), "shape (n, 28, 28), got (70, 32, 32)"),
    "no images": (IMAGES, packed(idx(clothes(0)[0])), "shape (n, 28, 28), got (0, 28, 28)"),
    "labels for images": (IMAGES, packed(idx(clothes(70)[1])), "shape (n, 28, 28), got (70,)"),
    "too few labels": (
        LABELS,
        packed(idx(clothes(69)[1])),
        "must hold 70 labels, one an image, got shape (69,)",
    ),
    "labels out of range": (
        LABELS,
        packed(idx(np.full(70, 46, np.uint8))),
        "must hold labels below 10, got 46",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_or_foreign_file_is_named(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        train(epochs=1)
    assert str(caught.value).startswith(str(folder / name))
    assert message in str(caught.value)


def test_what_cannot_be_read_is_named(folder):
    (folder / IMAGES).unlink()
    (folder / IMAGES).mkdir()
    with pytest.raises(InputError, match=f"cannot read {folder / IMAGES}: Is a directory"):
        train(epochs=1)


@pytest.mark.parametrize("command", ["noise", "stability", "audit"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_the_commands_say_so_in_one_line_with_status_2(folder, monkeypatch, capsys, command, damage):
    path = folder / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(whole[:1000])
    line = f"symdyn {command} --example fashion --learning-rate 0.05 --batch-size 32"
    monkeypatch.setattr("sys.argv", line.split())
    monkeypatch.setattr(main, "add_applications", lambda: None)
    with pytest.raises(SystemExit) as stop:
        main.main()
    output = capsys.readouterr()
    assert stop.value.code == 2
    assert output.out == ""
    said = " ".join(output.err.split())
    assert said.startswith("error: ")
    assert str(path) in said
    if damage == "missing":
        assert "apt install dataset-fashion-mnist, or set SYMDYN_FASHION_MNIST to the folder" in said


def test_an_empty_variable_counts_as_unset(monkeypatch, tmp_path):
    monkeypatch.setenv(fashion.VARIABLE, "")
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"looked for {tmp_path / 'nowhere' / IMAGES}"):
        train(epochs=1)


@pytest.fixture(scope="module")
def trained():
    """The network after two epochs, where the data are, and 64 images it has not seen."""
    if not (fashion.data_folder() / IMAGES).exists():
        pytest.skip(f"needs Fashion-MNIST: no {IMAGES} in {fashion.data_folder()}")
    target, _ = train(epochs=2)
    return target, target.inputs[:64], target.targets[:64]


def brute_force(model, inputs, targets):
    """Gradients of the loss sample by sample, slopes of every output, and products with the Hessian."""
    params = list(model.parameters())

    def flat(value, **options):
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, params, **options)])

    gradients, slopes = [], []
    for i in range(len(inputs)):
        outputs = model(inputs[i : i + 1])
        slopes.append(torch.stack([flat(output, retain_graph=True) for output in outputs[0]]))
        gradients.append(flat(cross_entropy(outputs, targets[i : i + 1])))
    slope = flat(cross_entropy(model(inputs), targets), create_graph=True)

    def product(vector):
        return flat(slope @ torch.as_tensor(vector).reshape(-1), retain_graph=True).numpy()

    operator = LinearOperator((len(slope), len(slope)), matvec=product, dtype="float64")
    return torch.stack(gradients), torch.stack(slopes), operator


def test_the_network_has_learned(trained):
    """Two of its ten epochs read 70 % of a thousand clothes never seen: 75 % with seed 0; chance is 10 %."""
    target, _, _ = trained
    with torch.no_grad():
        right = (target.model(target.inputs).argmax(-1) == target.targets).double().mean()
    assert right >= 0.7


def test_the_reports_agree_with_brute_force(trained):
    target, inputs, targets = trained
    model = copy.deepcopy(target.model).double()
    gradients, slopes, hessian = brute_force(model, inputs.double(), targets)
    settings = {"learning_rate": 0.05, "batch_size": 32}
    noise = noise_report(target.model, cross_entropy, inputs, targets, top=3, **settings)
    stability = stability_report(target.model, cross_entropy, inputs, targets, steps=50, **settings)

    deviations = gradients - gradients.mean(dim=0)
    assert noise.trace == pytest.approx(float(deviations.square().sum()) / 63, rel=1e-9)
    # Singular values of the deviations: what the covariance of 2,698 parameters has beside zeros.
    spectrum = torch.linalg.svdvals(deviations)[:3].square() / 63
    assert noise.spectrum == pytest.approx(spectrum.tolist(), rel=1e-9)
    # Without replacement, half of the data: the variance of the mean is that of one sample by 64.
    assert noise.batch_trace == pytest.approx(noise.trace / 64, rel=1e-9)

    top = float(eigsh(hessian, 1, which="LA", tol=1e-6, return_eigenvectors=False)[0])
    assert noise.curvatures[0] == pytest.approx(top, rel=1e-3)  # the accuracy that both reports ask for
    assert stability.curvatures[0] == pytest.approx(top, rel=1e-3)
    assert noise.edge == pytest.approx(2 / top, rel=1e-3)

    # The outputs are piecewise linear in every single parameter, so the diagonal of the Hessian is that of
    # its Gauss-Newton part, J^T (diag p - p p^T) J, exactly.
    chances = model(inputs.double()).softmax(dim=1).detach()
    mean_slopes = torch.einsum("nc,ncp->np", chances, slopes)
    exact = float(torch.einsum("nc,ncp->", chances, slopes.square()) - mean_slopes.square().sum()) / 64
    found = Curvature(model, cross_entropy, inputs, targets).trace(probes=60, confidence=0.999)
    assert found.low <= exact <= found.high
    assert found.high - found.low < 0.3 * exact
    # From 32 probes: their standard error was 3 % over six seeds.
    assert noise.hessian_trace == pytest.approx(exact, rel=0.12)
