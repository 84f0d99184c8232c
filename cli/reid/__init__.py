"""The `distcam reid` commands."""

from .. import train
from ..options import ReadsImages
from . import explain, reid

__all__ = ["app"]

app = reid.app
app.command(name="explain", cls=ReadsImages, epilog=explain.EXAMPLE)(explain.explain)
app.command(name="train", cls=ReadsImages, epilog=train.REID_EXAMPLE)(train.reid_train)
