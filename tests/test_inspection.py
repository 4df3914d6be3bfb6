"""Tests that strongest patches, explanations and nearest neighbours are what they claim to be."""

import sys

import pytest
import torch

from alexnet import VARIANTS, AlexNet
from alexnet.inspection import (
    Neighbours,
    Patches,
    distinct_maps,
    grad_cam,
    layers,
    occlusion,
    principal_plane,
    receptive_field,
)
from tests.conftest import command


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_place_of_a_layer_sees_its_receptive_field_and_nothing_else(variant: str) -> None:
    """Check that the gradient of one place ends at the edge of its field; normalisation over places may add 2."""
    torch.manual_seed(0)
    model = AlexNet(variant, 3).eval()
    for name, row in (("conv1", 20), ("conv2", 10), ("conv3", 6)):
        image = torch.randn(1, 3, 224, 224, requires_grad=True)
        maps, relus = image, 0
        for module in model.features:
            maps = module(maps)
            relus += isinstance(module, torch.nn.ReLU)
            if f"conv{relus}" == name:
                break
        maps[0, :, row, row].sum().backward()
        assert image.grad is not None
        rows = image.grad[0].abs().sum((0, 2)).nonzero().flatten()
        field = receptive_field(model, name)
        first, last = field.first + row * field.stride, field.first + row * field.stride + field.size - 1
        slack = 2 * 8 if variant == "source2012" and name == "conv3" else 0  # SameMapNorm, of stride 8
        assert max(first, 0) - slack <= rows[0] <= max(first, 0) + 8, (name, rows[0], field)
        assert min(last, 223) - 8 <= rows[-1] <= min(last, 223) + slack, (name, rows[-1], field)


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_are_those_of_the_network(variant: str) -> None:
    model = AlexNet(variant, 7).eval()
    images = torch.randn(2, 3, 224, 224)
    found = layers(model, images)
    assert list(found) == ["conv1", "conv2", "conv3", "conv4", "conv5", "hidden", "logits"]
    with torch.inference_mode():
        assert torch.allclose(found["logits"], model(images), atol=1e-6)
    assert found["hidden"].shape == (2, 4096) and all((found[f"conv{i}"] >= 0).all() for i in range(1, 6))


def test_neighbours_over_batches_are_those_of_a_full_sort() -> None:
    torch.manual_seed(0)
    features, queries = torch.randn(503, 16), torch.randn(4, 16)
    search = Neighbours(queries, count=6)
    for part in features.split(64):
        search.add(part)
    expected = (queries[:, None] - features).norm(dim=2).argsort(dim=1)[:, :6]
    assert torch.equal(search.nearest(), expected)


def test_patches_are_the_strongest_places_of_the_strongest_images() -> None:
    torch.manual_seed(0)
    maps = torch.rand(50, 3, 4, 5)
    maps[37, 1, 2, 3], maps[8, 1, 0, 4], maps[:, 2] = 9, 8, 0
    patches = Patches(count=2)
    for part in maps.split(16):
        patches.add(part)
    assert patches.strongest(1) == [(37, 2, 3), (8, 0, 4)]
    assert patches.most_selective(3) == [1, 0], "channel 2 is dead"
    assert patches.strongest(2) == [], "a place where nothing happens is no answer"


def test_maps_are_chosen_that_differ() -> None:
    """Check that copies of the strongest map, whatever their scale, come after weaker maps that differ from it."""
    torch.manual_seed(0)
    blob, edge, spot = torch.rand(3, 9, 9)
    copies = [blob * scale for scale in (1.0, 0.99, 0.9, 0.8)]
    maps = torch.stack([*copies, edge * 0.3, torch.zeros(9, 9), spot * 0.1])
    assert distinct_maps(maps, 3) == [0, 4, 6], "the strongest, then the others"
    assert 5 not in distinct_maps(maps, 7), "a map of zeros shows nothing"
    assert distinct_maps(torch.zeros(4, 9, 9), 3) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_searches_over_50000_images_stay_within_a_gigabyte() -> None:
    """Check features of 4096 numbers in a process of its own, because the peak covers all of it, torch included."""
    code = r"""
import torch
from alexnet.log import peak_memory_bytes
from alexnet.inspection import Neighbours, Patches
torch.set_num_threads(1)
search, patches = Neighbours(torch.rand(5, 4096)), Patches()
batch, maps = torch.rand(500, 4096), torch.rand(500, 8, 6, 6)
for _ in range(100):
    search.add(batch)
    patches.add(maps)
print(peak_memory_bytes(torch.device("cpu")))
"""
    done = command("-c", code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2**30


def blob_net() -> tuple[AlexNet, torch.Tensor]:
    """Return a network whose class 1 counts bright pixels, and an image with a bright part."""
    torch.manual_seed(0)
    model = AlexNet("one_weird_trick", 2).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(0.0 if name.endswith("bias") else 1e-3)
        model.classifier[-1].weight[0] = 0
    image = torch.zeros(1, 3, 224, 224)
    image[..., 40:90, 130:180] = 1
    return model, image


def test_occlusion_and_grad_cam_point_at_what_the_answer_depends_on() -> None:
    model, image = blob_net()
    for heat in (occlusion(model, image, 1), grad_cam(model, image, 1)):
        assert heat.shape == (224, 224) and heat.max() > 0
        row, column = divmod(int(heat.argmax()), 224)
        assert 20 <= row <= 110 and 110 <= column <= 200, (row, column)
        assert heat[200, 20] < 0.2 * heat.max(), "far away nothing matters"


def test_grad_cam_of_two_images_has_the_same_unit() -> None:
    """Check that a network with half the weights in its last layer has half the heat: nothing stretches it to 1."""
    model, image = blob_net()
    heat = grad_cam(model, image, 1)
    with torch.no_grad():
        model.classifier[-1].weight /= 2
    assert torch.allclose(grad_cam(model, image, 1), heat / 2, rtol=1e-4)


def test_the_principal_plane_keeps_what_varies() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(200, 2) * torch.tensor([5.0, 2.0])
    places, share = principal_plane(hidden @ torch.linalg.qr(torch.randn(30, 30))[0][:2] + 3)
    assert share == pytest.approx(1, abs=1e-4)
    assert torch.allclose(torch.cdist(places, places), torch.cdist(hidden, hidden), atol=1e-2)
