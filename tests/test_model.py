"""Tests of the model variants against their sources."""

import pytest
import torch
import torchvision
from torch import nn

from alexnet import RECIPES, VARIANTS, AlexNet, AlexNetError
from alexnet.engine import TrainStep
from alexnet.lrn import CrossMapNorm
from alexnet.optim import make_optimizer


def test_one_weird_trick_takes_torchvisions_weights_and_gives_its_logits() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.alexnet(weights=None).eval()
    ours = AlexNet("one_weird_trick").eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(4, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)
    theirs.load_state_dict(AlexNet("one_weird_trick").state_dict())  # and in the other direction


@pytest.mark.slow
def test_twenty_steps_give_torchvisions_losses() -> None:
    """Check with the same weights and batches, and torch.optim.SGD beside ours. Both models are channels-last, because
    another layout rounds differently, which after twenty steps is 1e-4 of the loss."""
    torch.manual_seed(0)
    theirs, ours = torchvision.models.alexnet(dropout=0), AlexNet("one_weird_trick", dropout=0)
    ours.load_state_dict(theirs.state_dict())
    for model in (theirs, ours):
        model.to(memory_format=torch.channels_last)
    recipe = RECIPES["torchvision"]
    optimizer = torch.optim.SGD(theirs.parameters(), recipe.learning_rate, 0.9, weight_decay=1e-4)
    step = TrainStep(ours, make_optimizer(ours, recipe), recipe, torch.device("cpu"))
    batches = [(torch.randn(4, 3, 224, 224), torch.randint(1000, (4,))) for _ in range(5)]
    for images, labels in batches * 4:
        loss = nn.functional.cross_entropy(theirs(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert step(images, labels).item() == pytest.approx(loss.item(), abs=1e-4)


PARAMETERS = {
    "paper": 60_965_224,
    "ungrouped": 62_378_344,
    "source2012": 60_965_224,
    "one_weird_trick": 61_100_840,
    "bn": 61_101_992,
}


@pytest.mark.parametrize(("variant", "count"), PARAMETERS.items())
def test_parameter_counts_are_the_published_ones(variant: str, count: int) -> None:
    assert sum(parameter.numel() for parameter in AlexNet(variant).parameters()) == count


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_shapes_are_those_of_the_paper(variant: str) -> None:
    """Check 55, 27, 13, 13, 13 pixels after the five convolutions, 6 after the last pooling."""
    model = AlexNet(variant, num_classes=7).eval()
    sizes = []
    for layer in model.convolutions().values():
        layer.register_forward_hook(lambda _, __, output: sizes.append(output.shape[-1]))
    with torch.inference_mode():
        assert model.features(torch.zeros(2, 3, 224, 224)).shape == (2, 256, 6, 6)
        assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 7)
    assert sizes[:5] == [55, 27, 13, 13, 13]


@pytest.mark.parametrize("variant", ["paper", "source2012"])
def test_the_first_convolution_over_blocks_is_the_same(variant: str) -> None:
    """Check up to the rounding of sums of 363 products, forward and backward, with weights stored as usual."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 224, 224)
    results = []
    direct, blocks = AlexNet(variant, 2), AlexNet(variant, 2, conv1="blocks")
    blocks.load_state_dict(direct.state_dict())
    for model in (direct, blocks):
        layer = model.convolutions()["conv1"]
        maps = layer(images if variant != "source2012" else model.features[0](images))
        assert maps.shape == (2, layer.out_channels, 55, 55)
        maps.square().mean().backward()
        results.append((maps, layer.weight.grad))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["conv2", "conv4"])
def test_groups_split_into_dense_convolutions_are_the_same(name: str) -> None:
    """Check values and gradients up to the rounding of sums, with weights stored as usual."""
    torch.manual_seed(0)
    results = []
    grouped, split = AlexNet("paper", 2), AlexNet("paper", 2, groups="split")
    split.load_state_dict(grouped.state_dict())
    maps = torch.randn(2, grouped.convolutions()[name].in_channels, 9, 7).contiguous(memory_format=torch.channels_last)
    for model in (grouped, split):
        layer, x = model.convolutions()[name], maps.clone().requires_grad_()
        y = layer(x)
        y.square().mean().backward()
        results.append([y, x.grad, layer.weight.grad, layer.bias.grad])
    assert split.convolutions()[name].split
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_normalisation_is_the_papers_formula() -> None:
    """Check section 3.3: b = a / (k + alpha * sum of squares over n channels) ** beta, alpha not divided by n."""
    layers = [module for module in AlexNet("paper", 2).features if isinstance(module, CrossMapNorm)]
    assert len(layers) == 2
    a = torch.randn(2, 16, 3, 3) * 50
    expected = torch.empty_like(a)
    for i in range(16):
        near = a[:, max(0, i - 2) : i + 3]
        expected[:, i] = a[:, i] / (2 + 1e-4 * (near**2).sum(1)) ** 0.75
    for layer in layers:
        torch.testing.assert_close(layer(a), expected)


def test_the_papers_initial_weights_and_biases() -> None:
    torch.manual_seed(0)
    model = AlexNet("paper", 1000)
    layers = [m for m in (*model.features, *model.classifier) if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [layer.bias.mean().item() for layer in layers] == [0, 1, 0, 1, 1, 1, 1, 0]
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)


def test_an_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AlexNetError, match="paper, ungrouped, source2012, one_weird_trick, bn"):
        AlexNet("vgg")


def test_no_classes_are_refused() -> None:
    with pytest.raises(AlexNetError, match="0 classes"):
        AlexNet("bn", 0)


@pytest.mark.parametrize("shape", [(2, 3, 227, 227), (2, 1, 224, 224), (3, 224, 224)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AlexNetError, match=r"the network takes N,3,224,224"):
        AlexNet("bn", 2).eval()(torch.zeros(shape))
