from .benchmarks import (
    EncodingSettings as EncodingSettings,
    default_protocol as default_protocol,
    evaluate_dataset as evaluate_dataset,
    evaluate_encodings as evaluate_encodings,
    evaluate_gallery as evaluate_gallery,
)
from .correspondence import PictureCorrespondence as PictureCorrespondence, PlacePair as PlacePair
from .evaluation import evaluate_embeddings as evaluate_embeddings
from .explanation import Explanation as Explanation, Reference as Reference
from .localisation.evaluate import localise as localise
from .localisation.references import References as References, read_classifier as read_classifier
from .localisation.results import LocalisationTable as LocalisationTable
from .matches import Match as Match, Matches as Matches, Query as Query
from .protocols import Protocol as Protocol
from .report import write_report as write_report
from .retriever import Retriever as Retriever
from .scores import Evaluation as Evaluation, Origin as Origin, Score as Score
