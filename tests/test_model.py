"""The variants against their sources."""

import pytest
import torch
import torchvision
from torch import nn

from alexnet import VARIANTS, AlexNet, AlexNetError
from alexnet.model import parameter_count


def test_one_weird_trick_takes_torchvisions_weights_and_gives_its_logits() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.alexnet(weights=None).eval()
    ours = AlexNet("one_weird_trick").eval()
    ours.load_state_dict(theirs.state_dict())
    assert set(ours.state_dict()) == set(theirs.state_dict())
    images = torch.randn(4, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("variant", "count"), [("paper", 60_965_224), ("one_weird_trick", 61_100_840)])
def test_parameter_counts_are_the_published_ones(variant: str, count: int) -> None:
    assert parameter_count(AlexNet(variant)) == count


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_shapes_are_those_of_the_paper(variant: str) -> None:
    """55, 27, 13, 13, 13 pixels after the five convolutions, 6 after the last pooling."""
    model = AlexNet(variant, num_classes=7).eval()
    sizes = []
    for layer in model.convolutions().values():
        layer.register_forward_hook(lambda _, __, output: sizes.append(output.shape[-1]))
    with torch.inference_mode():
        assert model.features(torch.zeros(2, 3, 224, 224)).shape == (2, 256, 6, 6)
        assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 7)
    assert sizes[:5] == [55, 27, 13, 13, 13]


def test_normalisation_is_the_papers_formula() -> None:
    """Section 3.3: b = a / (k + alpha * sum of squares over n channels) ** beta, alpha not divided by n."""
    layer = next(module for module in AlexNet("paper", 2).features if isinstance(module, nn.LocalResponseNorm))
    a = torch.randn(2, 16, 3, 3, dtype=torch.float64) * 50
    expected = torch.empty_like(a)
    for i in range(16):
        near = a[:, max(0, i - 2) : i + 3]
        expected[:, i] = a[:, i] / (2 + 1e-4 * (near**2).sum(1)) ** 0.75
    torch.testing.assert_close(layer(a), expected)


def test_the_papers_initial_weights_and_biases() -> None:
    torch.manual_seed(0)
    model = AlexNet("paper", 1000)
    layers = [m for m in (*model.features, *model.classifier) if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [layer.bias.mean().item() for layer in layers] == [0, 1, 0, 1, 1, 1, 1, 0]
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)


def test_an_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AlexNetError, match="paper, one_weird_trick, bn"):
        AlexNet("vgg")
