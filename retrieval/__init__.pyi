from .atlas import write_atlas as write_atlas
from .benchmarks import EncodingSettings as EncodingSettings
from .benchmarks import default_protocol as default_protocol
from .benchmarks import evaluate_dataset as evaluate_dataset
from .benchmarks import evaluate_encodings as evaluate_encodings
from .benchmarks import evaluate_gallery as evaluate_gallery
from .classification import Prediction as Prediction
from .estimator import DistcamClassifier as DistcamClassifier
from .evaluation import Origin as Origin
from .evaluation import RetrievalEvaluation as RetrievalEvaluation
from .evaluation import RetrievalProtocol as RetrievalProtocol
from .evaluation import Score as Score
from .evaluation import evaluate_embeddings as evaluate_embeddings
from .evidence import Reference as Reference
from .explanation import Explanation as Explanation
from .fiftyone import fiftyone_samples as fiftyone_samples
from .line_calibration import calibrate_verification as calibrate_verification
from .lines import Line as Line
from .lines import MatchLines as MatchLines
from .localisation.classifiers import read_classifier as read_classifier
from .localisation.evaluate import localise as localise
from .localisation.references import References as References
from .localisation.results import LocalisationTable as LocalisationTable
from .matches import Matches as Matches
from .matches import PictureCorrespondence as PictureCorrespondence
from .matches import PlacePair as PlacePair
from .pair import explain_pair as explain_pair
from .ranking import Match as Match
from .ranking import Query as Query
from .report import write_report as write_report
from .retriever import Retriever as Retriever

# names until 0.2
Evaluation = RetrievalEvaluation
Protocol = RetrievalProtocol
