"""How to read each part of the report, in a sentence."""

PICTURES = {
    "filters": (
        "Each square is a kernel of the first layer (figure 3 of the paper), scaled to its own largest weight: "
        "grey is zero, edges and colours are what it answers to."
    ),
    "answers": (
        "Under each image are the five likeliest classes with their probabilities; the bar of the true class is "
        "pink (figure 4 of the paper, left)."
    ),
    "neighbours": (
        "Left are val images, beside each the train images with the nearest features in the last hidden layer; a "
        "red name is of another class (figure 4 of the paper, right)."
    ),
    "patches": (
        "Each row shows the parts of val images that excite one channel most, as large as its receptive field: "
        "what they have in common is what the channel answers to."
    ),
    "saliency": (
        "The second row is bright where covering the image lowers the logit of the predicted class, the third "
        "where Grad-CAM finds its reasons; each row has one scale, shown at its right."
    ),
    "features": (
        "Each dot, and at the right each thumbnail, is a val image on the plane of the last hidden layer's first "
        "two principal components: images nearby look alike to the network."
    ),
    "activations": (
        "Each square is a channel's activation for the image, bright where it is high, scaled to its own largest "
        "value; strong channels that differ from each other were chosen."
    ),
}

PARTS = {
    "Training": (
        "The curves show means over equal numbers of steps, for accuracy and validation loss a point per epoch; "
        "hover over a point for its value."
    ),
    "Confusions": (
        "A row is a true class, a column a predicted one, and the shade their share of the row; the diagonal is "
        "right. A number that is underlined opens its images."
    ),
    "Pairs": "Each line is a pair of classes, the most confused first; it opens to its images.",
    "Mistakes": (
        "These val images are predicted wrongly, the most certain first: a mislabelled or ambiguous image is "
        "often among them."
    ),
    "Classes": (
        "Precision is the share of right ones among the images predicted as the class, recall among the images of"
        " the class, and F1 their harmonic mean; a click on a heading sorts."
    ),
    "Kinds of images": "The val images in groups; intervals that overlap much tell no difference.",
    "Confidence": (
        "A bar is the accuracy among predictions of this confidence, with its 95 % interval; on the dashed line "
        "the confidence can be taken for a probability. Pale bars are of fewer than ten images."
    ),
}
