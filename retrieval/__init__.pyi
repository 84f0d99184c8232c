from .benchmarks import EncodingSettings, default_protocol, evaluate_dataset, evaluate_encodings, evaluate_gallery
from .evaluation import Evaluation, Origin, Protocol, Score, evaluate_embeddings
from .evidence import Reference
from .explanation import Explanation
from .lines import Line, MatchLines
from .localisation.evaluate import localise
from .localisation.references import References, read_classifier
from .localisation.results import LocalisationTable
from .matches import Matches, PictureCorrespondence, PlacePair
from .ranking import Match, Query
from .report import write_report
from .retriever import Retriever
from .verifying import calibrate_verification

__all__ = [
    "EncodingSettings",
    "Evaluation",
    "Explanation",
    "Line",
    "LocalisationTable",
    "Match",
    "MatchLines",
    "Matches",
    "Origin",
    "PictureCorrespondence",
    "PlacePair",
    "Protocol",
    "Query",
    "Reference",
    "References",
    "Retriever",
    "Score",
    "calibrate_verification",
    "default_protocol",
    "evaluate_dataset",
    "evaluate_embeddings",
    "evaluate_encodings",
    "evaluate_gallery",
    "localise",
    "read_classifier",
    "write_report",
]
