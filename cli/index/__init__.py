"""The `distcam index` commands."""

from ..options import ReadsImages
from . import manage, transfer, tune

__all__ = ["app"]

app = manage.app
app.command(name="tune", epilog=tune.TUNE_EXAMPLE)(tune.tune)
app.command(name="calibrate", cls=ReadsImages, epilog=tune.CALIBRATE_EXAMPLE)(tune.calibrate)
app.command(name="sync", cls=ReadsImages, epilog=transfer.SYNC_EXAMPLE)(transfer.sync)
app.command(name="import", epilog=transfer.IMPORT_EXAMPLE)(transfer.import_)
app.command(name="export", epilog=transfer.EXPORT_EXAMPLE)(transfer.export)
app.command(name="restore", epilog=transfer.RESTORE_EXAMPLE)(transfer.restore)
