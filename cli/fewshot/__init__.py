"""The `distcam fewshot` commands."""

from .. import train
from ..options import ReadsImages
from . import fewshot

__all__ = ["app"]

app = fewshot.app
app.command(name="train", cls=ReadsImages, epilog=train.FEWSHOT_EXAMPLE)(train.fewshot_train)
