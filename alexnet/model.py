"""AlexNet in five variants. Each takes N,3,224,224 and returns N,num_classes logits. docs/networks.md compares them.

| variant         | source                                                     | parameters (1000 classes) |
|-----------------|------------------------------------------------------------|---------------------------|
| paper           | Krizhevsky, Sutskever, Hinton 2012                         | 60,965,224                |
| ungrouped       | the paper's, every convolution connected to all channels   | 62,378,344                |
| source2012      | the authors' own code, net 145 of the 2012 release         | 60,965,224                |
| one_weird_trick | Krizhevsky 2014 (arXiv:1404.5997), as in torchvision       | 61,100,840                |
| bn              | one_weird_trick with batch normalisation: learns quickly   | 61,101,992                |
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn

from alexnet.errors import AlexNetError
from alexnet.layers import Features, FirstConv2d, GroupedConv2d
from alexnet.lrn import CrossMapNorm, SameMapNorm

IMAGE_SHAPE = (3, 224, 224)
Groups = Literal["grouped", "split"]
Fused = Literal["auto", "off"]


class AlexNet(nn.Module):
    """An AlexNet. ``variant`` is a name in ``VARIANTS``, ``dropout`` the share of fully connected activations dropped.

    The last three select how layers are computed, with the same weights and, up to rounding, results: ``conv1`` direct
    or as blocks (``FirstConv2d``), convolutions in ``groups`` or ``split`` into one each (``GroupedConv2d``), and the
    layers between convolutions ``fused`` where a GPU allows it (``Features``), or off. Raises AlexNetError for an
    unknown variant, no classes, and images of another shape.
    """

    def __init__(
        self,
        variant: str = "paper",
        num_classes: int = 1000,
        dropout: float = 0.5,
        *,
        conv1: Literal["direct", "blocks"] = "direct",
        groups: Groups = "grouped",
        fused: Fused = "auto",
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise AlexNetError(f"no variant {variant!r}, only {', '.join(VARIANTS)}")
        if num_classes < 1:
            raise AlexNetError(f"{num_classes} classes: there must be one at least")
        self.variant, self.num_classes = variant, num_classes
        self.features, self.classifier = VARIANTS[variant](num_classes, dropout)
        self.features.fused = fused == "auto"
        for layer in self.features:
            if isinstance(layer, FirstConv2d):
                layer.blocks = conv1 == "blocks"
            if isinstance(layer, GroupedConv2d):
                layer.split = groups == "split"

    def freeze_features(self) -> None:
        """Stop training the convolutions: no gradients, and batch normalisation by its running statistics."""
        self.features.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "AlexNet":
        """Switch to training, or with ``mode`` false to evaluation, except for features that are frozen."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.features.parameters()):
            self.features.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1:] != IMAGE_SHAPE:
            raise AlexNetError(f"images are {tuple(images.shape)}, the network takes N,3,224,224")
        maps = self.features(images)  # N,256,6,6
        return self.classifier(maps.flatten(1))  # N,num_classes

    def convolutions(self) -> dict[str, nn.Conv2d]:
        """Return conv1 to conv5 by name, in order."""
        found = [module for module in self.features if isinstance(module, nn.Conv2d)]
        return {f"conv{i}": module for i, module in enumerate(found, start=1)}


def paper(num_classes: int, dropout: float, groups: int = 2) -> tuple[Features, nn.Sequential]:
    """Build sections 3.1 to 3.5 and figure 2: groups as split over two GPUs, normalisation, overlapping pooling.

    A padding of 2 in conv1 gives the 55 x 55 that figure 2 implies for 224 x 224 images. The paper's normalisation
    (section 3.3) does not divide alpha by n, ours does: 1e-4 becomes 5e-4.
    """
    features = Features(  # N,3,224,224
        FirstConv2d(96),  # N,96,55,55
        nn.ReLU(inplace=True),
        CrossMapNorm(5, alpha=5e-4, k=2),
        nn.MaxPool2d(3, stride=2),  # N,96,27,27
        GroupedConv2d(96, 256, 5, padding=2, groups=groups),  # N,256,27,27
        nn.ReLU(inplace=True),
        CrossMapNorm(5, alpha=5e-4, k=2),
        nn.MaxPool2d(3, stride=2),  # N,256,13,13
        nn.Conv2d(256, 384, 3, padding=1),  # N,384,13,13
        nn.ReLU(inplace=True),
        GroupedConv2d(384, 384, 3, padding=1, groups=groups),  # N,384,13,13
        nn.ReLU(inplace=True),
        GroupedConv2d(384, 256, 3, padding=1, groups=groups),  # N,256,13,13
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),  # N,256,6,6
    )
    classifier = fully_connected(num_classes, dropout)
    _initialise_as_paper(features, classifier)
    return features, classifier


def source2012(num_classes: int, dropout: float) -> tuple[Features, nn.Sequential]:
    """Build layers-145.cfg and layer-params-145.cfg of the 2012 source: the net behind the paper's result for one CNN.

    It normalises before pooling and ReLU in layer 1, twice in layer 2, and only among the maps of one GPU. Its
    ``scale`` is divided by the size of the window, as alpha is here. Its two towers are two groups of channels here.
    """
    features = Features(  # N,3,224,224
        nn.ZeroPad2d((0, 3, 0, 3)),  # N,3,227,227: kernels start at the first pixel and hang over the last
        FirstConv2d(96, padding=0),  # N,96,55,55
        CrossMapNorm(5, alpha=1e-4, k=2, groups=2),
        nn.MaxPool2d(3, stride=2),  # N,96,27,27
        nn.ReLU(inplace=True),
        GroupedConv2d(96, 256, 5, padding=2, groups=2),  # N,256,27,27
        nn.ReLU(inplace=True),
        CrossMapNorm(5, alpha=1e-4, k=2, groups=2),
        SameMapNorm(5, alpha=1e-3, k=1),
        nn.MaxPool2d(3, stride=2),  # N,256,13,13
        nn.Conv2d(256, 384, 3, padding=1),  # N,384,13,13
        nn.ReLU(inplace=True),
        GroupedConv2d(384, 384, 3, padding=1, groups=2),  # N,384,13,13
        nn.ReLU(inplace=True),
        GroupedConv2d(384, 256, 3, padding=1, groups=2),  # N,256,13,13
        nn.MaxPool2d(3, stride=2),  # N,256,6,6
        nn.ReLU(inplace=True),
    )
    classifier = fully_connected(num_classes, dropout)
    _initialise_as_paper(features, classifier, later_convolutions=0.03)
    return features, classifier


def fully_connected(num_classes: int, dropout: float) -> nn.Sequential:
    """Build fc6 to fc8 of the paper, with dropout on the outputs of the first two (section 4.2)."""
    return nn.Sequential(  # N,9216
        nn.Linear(9216, 4096),  # N,4096
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(4096, 4096),  # N,4096
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(4096, num_classes),  # N,num_classes
    )


def _initialise_as_paper(features: Features, classifier: nn.Sequential, later_convolutions: float = 0.01) -> None:
    """Initialise by section 5: weights N(0, 0.01); biases 1 in conv2, conv4, conv5 and hidden linear layers, else 0.

    ``later_convolutions`` is the standard deviation in conv3, conv4 and conv5.
    """
    convolutions = [module for module in features if isinstance(module, nn.Conv2d)]
    linears = [module for module in classifier if isinstance(module, nn.Linear)]
    with_ones = {convolutions[1], convolutions[3], convolutions[4], linears[0], linears[1]}
    layers: list[nn.Conv2d | nn.Linear] = [*convolutions, *linears]
    for layer in layers:
        assert layer.bias is not None
        nn.init.normal_(layer.weight, std=later_convolutions if layer in convolutions[2:] else 0.01)
        nn.init.constant_(layer.bias, 1.0 if layer in with_ones else 0.0)


def one_weird_trick(num_classes: int, dropout: float) -> tuple[Features, nn.Sequential]:
    """Build one tower without groups or normalisation, numbered like torchvision's, whose state dict it can load."""
    features = Features(  # N,3,224,224
        FirstConv2d(64),  # N,64,55,55
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),  # N,64,27,27
        nn.Conv2d(64, 192, 5, padding=2),  # N,192,27,27
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),  # N,192,13,13
        nn.Conv2d(192, 384, 3, padding=1),  # N,384,13,13
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),  # N,256,13,13
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),  # N,256,13,13
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),  # N,256,6,6
    )
    classifier = nn.Sequential(  # N,9216
        nn.Dropout(dropout),
        nn.Linear(9216, 4096),  # N,4096
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(4096, 4096),  # N,4096
        nn.ReLU(inplace=True),
        nn.Linear(4096, num_classes),  # N,num_classes
    )
    return features, classifier


def bn(num_classes: int, dropout: float) -> tuple[Features, nn.Sequential]:
    """Build one tower with batch normalisation (Ioffe, Szegedy 2015) after each convolution, which then needs no bias.

    conv1 starts as small as the paper's. After normalisation its scale changes no output, but the smaller the initial
    noise, the sooner training overwrites it and the kernels show what was learned.
    """
    features = Features(  # N,3,224,224
        FirstConv2d(64, bias=False),  # N,64,55,55
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),  # N,64,27,27
        nn.Conv2d(64, 192, 5, padding=2, bias=False),  # N,192,27,27
        nn.BatchNorm2d(192),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),  # N,192,13,13
        nn.Conv2d(192, 384, 3, padding=1, bias=False),  # N,384,13,13
        nn.BatchNorm2d(384),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1, bias=False),  # N,256,13,13
        nn.BatchNorm2d(256),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1, bias=False),  # N,256,13,13
        nn.BatchNorm2d(256),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),  # N,256,6,6
    )
    conv1 = features[0]
    assert isinstance(conv1, nn.Conv2d)
    nn.init.normal_(conv1.weight, std=0.01)
    return features, fully_connected(num_classes, dropout)


VARIANTS: dict[str, Callable[[int, float], tuple[Features, nn.Sequential]]] = {
    "paper": paper,
    "ungrouped": partial(paper, groups=1),
    "source2012": source2012,
    "one_weird_trick": one_weird_trick,
    "bn": bn,
}
