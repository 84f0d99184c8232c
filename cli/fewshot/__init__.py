"""The `distcam fewshot` commands."""

from .. import task_train
from ..options import ReadsImages
from . import fewshot

__all__ = ["app"]

app = fewshot.app
app.command(name="train", cls=ReadsImages, epilog=task_train.FEWSHOT_EXAMPLE)(task_train.fewshot_train)
