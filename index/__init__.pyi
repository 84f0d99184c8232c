from .building.encodings import (
    Encodings as Encodings,
    encode_to_file as encode_to_file,
    read_encodings as read_encodings,
)
from .building.ray import RayEngine as RayEngine
from .faiss.search import FaissSearch as FaissSearch
from .faiss.tuning import TuningReport as TuningReport
from .filters.tree import (
    And as And,
    Eq as Eq,
    Filter as Filter,
    Glob as Glob,
    In as In,
    Ne as Ne,
    Not as Not,
    Or as Or,
    Range as Range,
    parse_filter as parse_filter,
)
from .gallery import Gallery as Gallery
from .interop.export import export_gallery as export_gallery
from .interop.import_ import import_gallery as import_gallery
from .prototypes import PrototypeStore as PrototypeStore
from .rejection import Rejection as Rejection
from .reports import AddReport as AddReport, Problem as Problem, Skipped as Skipped, VerifyReport as VerifyReport
from .search import METRICS as METRICS, Hits as Hits, Metric as Metric, Search as Search, SearchSpec as SearchSpec
from .storage.records import Record as Record
from .storage.restoring import restore_gallery as restore_gallery
from .storage.tuned import Tuning as Tuning
from .storage.verify import verify_gallery as verify_gallery
from .sync.report import SyncReport as SyncReport
from .sync.watch import watch_folder as watch_folder
