from .benchmarks import EncodingSettings, default_protocol, evaluate_dataset, evaluate_encodings, evaluate_gallery
from .correspondence import PictureCorrespondence, PlacePair
from .evaluation import evaluate_embeddings
from .explanation import Explanation, Reference
from .localisation.evaluate import localise
from .localisation.references import References, read_classifier
from .localisation.results import LocalisationTable
from .matches import Match, Matches, Query
from .protocols import Protocol
from .report import write_report
from .retriever import Retriever
from .scores import Evaluation, Origin, Score

__all__ = [
    "EncodingSettings",
    "Evaluation",
    "Explanation",
    "LocalisationTable",
    "Match",
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
    "default_protocol",
    "evaluate_dataset",
    "evaluate_embeddings",
    "evaluate_encodings",
    "evaluate_gallery",
    "localise",
    "read_classifier",
    "write_report",
]
