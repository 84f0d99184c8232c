"""The images of offers; a file of which several boxes are offered is read and decoded once."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path
from threading import Lock

from PIL import Image
from torch import Tensor

from ...encoders.inference import Inference
from ...images.items import crop, with_margin
from ...images.loading import image_size, read_image
from .ingest import Offer, note_state, read_offer

_Opened = tuple[Offer, Image.Image, float]  # with the file's state; reduced to this share of its size


class OpenedImages:
    """The images that offers are encoded from: whole ones, or crops with the gallery's margin.

    Boxes of one file stand behind one another, so as many files as there are threads, and one, are held.
    """

    def __init__(self, inference: Inference, workers: int | None, *, margin: float) -> None:
        self._transform, self._margin = inference.transform, margin
        self._most = 1 + (inference.default_workers if workers is None else workers)
        self._held: OrderedDict[Path, Future[_Opened]] = OrderedDict()
        self._lock = Lock()

    def read(self, offer: Offer) -> tuple[Tensor, tuple[int, int]]:
        """The network's pixels of an offer, and the image's size; ImageError where it is unusable, or there already."""
        if offer.box is None:
            return self._transform.read(read_offer(offer))
        with self._lock:
            found = self._held.get(offer.file)
            if is_first := found is None:
                found = self._held[offer.file] = Future()
                if len(self._held) > self._most:
                    self._held.popitem(last=False)
        if is_first:
            try:
                found.set_result(_opened(offer))
            except BaseException as error:  # which every box of the file meets
                found.set_exception(error)
        read, image, scale = found.result()
        note_state(offer, read.sha256, read.size, read.mtime_ns)
        cut = crop(image, with_margin(offer.box, self._margin).scaled(scale), name=offer.path)
        return self._transform(cut), cut.size


def _opened(offer: Offer) -> _Opened:
    whole = Offer(offer.file, offer.path)
    data = read_offer(whole)
    image = read_image(data)
    return whole, image, max(image.size) / max(image_size(data))
