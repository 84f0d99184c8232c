"""The `distcam index` commands."""

from ..options import ReadsImages
from . import interop, manage, sync, tune

__all__ = ["app"]

app = manage.app
app.command(name="tune", epilog=tune.TUNE_EXAMPLE)(tune.tune)
app.command(name="calibrate", cls=ReadsImages, epilog=tune.CALIBRATE_EXAMPLE)(tune.calibrate)
app.command(name="sync", cls=ReadsImages, epilog=sync.EXAMPLE)(sync.sync)
app.command(name="import", epilog=interop.IMPORT_EXAMPLE)(interop.import_)
app.command(name="export", epilog=interop.EXPORT_EXAMPLE)(interop.export)
app.command(name="restore", epilog=interop.RESTORE_EXAMPLE)(interop.restore)
