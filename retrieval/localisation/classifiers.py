"""Classifiers of pooled vectors for class activation maps: the network's own, or one learnt on the references."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...encoders.layers import plain_name
from ...encoders.weight_files import fetch_imagenet, read_state_dict
from ...errors import InputError
from ...remarks import remark
from ...training.losses.classifier import load_classifier
from .references import References

_SYNSET = re.compile(r"n\d{8}")
_CLASSIFIERS = ("fc.", "classifier.", "head.", "heads.")


class LinearClassifier(NamedTuple):
    """Scores behind average pooling: `weight` (c, k) times the pooled vector plus `bias` (c,); names where known."""

    weight: Tensor
    bias: Tensor
    class_names: tuple[str, ...] = ()

    def predicted(self, pooled: Tensor) -> Tensor:
        """The class with the highest score, (b,)."""
        return (pooled @ self.weight.T + self.bias).argmax(1)

    def for_references(self, references: References, *, strict: bool = False) -> LinearClassifier:
        """The rows of the references' classes.

        Known where the classifier has their names, or where the references have all of its classes by ILSVRC's
        (`n01440764`, …), whose order is that of the outputs. Else those that the classes' mean images excite most, each
        row once; which classes had to leave theirs to another is a remark.
        """
        labels = references.labels
        if set(labels) <= set(self.class_names):
            named = torch.tensor([self.class_names.index(label) for label in labels])
            return LinearClassifier(self.weight[named], self.bias[named], tuple(labels))
        if len(labels) == len(self.weight) and all(map(_SYNSET.fullmatch, labels)):
            return self
        if len(labels) > len(self.weight):
            raise InputError(
                f"the network's classifier has {len(self.weight):,} outputs, the references {len(labels):,} classes; "
                "it has no map for each; use `cam_probe`, which is learnt on the references"
            )
        from scipy.optimize import linear_sum_assignment

        scores = references.class_means @ self.weight.T + self.bias
        rows = torch.from_numpy(linear_sum_assignment(-scores.double().numpy())[1])
        best = scores.argmax(1)
        if moved := (rows != best).nonzero()[:, 0].tolist():
            first = moved[0]
            rival = next((i for i in range(len(labels)) if i != first and rows[i] == best[first]), first)
            remark(
                f"the network's classifier calls {labels[rival]!r} and {labels[first]!r} the same (output "
                f"{int(best[first])}), so `cam` takes output {int(rows[first])} for {labels[first]!r}; so it is with "
                f"{len(moved):,} of {len(labels):,} classes. `cam_probe` is learnt on the references",
                strict=strict,
            )
        return LinearClassifier(self.weight[rows], self.bias[rows])


def read_classifier(
    architecture: str, weights: str | os.PathLike[str] | None, *, pooled_dim: int
) -> LinearClassifier | None:
    """The linear classifier in a file of weights, if it has one that acts on the pooled vector; else None.

    Args:
        architecture: for `weights="imagenet"`, which fetches torchvision's; or the checkpoint of a training.
        weights: the file that the encoder was loaded from, "imagenet", or "random" (which has none). None for a
            checkpoint, beside which the training left its classifier.
        pooled_dim: length of the encoder's pooled vector; a classifier of another width belongs to another layer.

    Raises:
        WeightsError: the file cannot be read.
    """
    if weights == "random":
        return None
    if weights is None:
        return _of_run(Path(architecture).with_name("classifier.safetensors"), pooled_dim)
    state = fetch_imagenet(architecture)[0] if weights == "imagenet" else read_state_dict(weights)
    found = []
    for name, tensor in state.items():
        plain = plain_name(name)
        if not plain.startswith(_CLASSIFIERS) or not plain.endswith(".weight"):
            continue
        matrix = tensor.flatten(1) if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor
        if matrix.ndim == 2 and matrix.shape[1] == pooled_dim:
            bias = state.get(f"{name.removesuffix('weight')}bias", torch.zeros(len(matrix)))
            found.append(LinearClassifier(matrix.float(), bias.float()))
    return found[0] if len(found) == 1 else None


def _of_run(file: Path, pooled_dim: int) -> LinearClassifier | None:
    """The classifier that a training wrote, if it is linear and takes the pooled vector."""
    if not file.is_file():
        return None
    term, names, _ = load_classifier(file)
    weight = term.class_weights().detach()
    if term.head != "linear" or weight.shape[1] != pooled_dim:
        return None
    bias = torch.zeros(len(weight)) if term.bias is None else term.bias.detach()
    return LinearClassifier(weight, bias, tuple(names))


def linear_probe(references: References, *, decay: float = 1e-2) -> LinearClassifier:
    """A softmax classifier learnt on the references' pooled vectors: CAM for encoders that have no classifier."""
    from sklearn.linear_model import LogisticRegression

    references.require_images("cam_probe")
    vectors, is_binary = references.pooled, len(references.labels) == 2
    mean, spread = vectors.mean(0), vectors.std(0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    strength = (2 if is_binary else 1) / (decay * len(vectors))  # of two classes one row is learnt, which both share
    model = LogisticRegression(C=strength, max_iter=1000, tol=1e-6)
    model.fit(((vectors - mean) / spread).numpy(), references.classes.numpy())
    weight, bias = (torch.from_numpy(part).float() for part in (model.coef_, model.intercept_))
    if is_binary:
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    raw = weight / spread
    return LinearClassifier(raw, bias - raw @ mean)
