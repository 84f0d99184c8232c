from ..datasets.registry import read_data as read_data
from ..datasets.reid_records import ReidData as ReidData
from ..datasets.reid_records import ReidImage as ReidImage
from ..datasets.reid_records import ReidProtocol as ReidProtocol
from ..synthetic.walkers import WalkerSet as WalkerSet
from ..synthetic.walkers import write_walkers as write_walkers
from .assessment import Answer as Answer
from .assessment import Assessment as Assessment
from .assessment import FailedQuery as FailedQuery
from .assessment import Promotion as Promotion
from .assessment import assess as assess
from .auditing import Audit as Audit
from .auditing import audit as audit
from .evaluation import evaluate_distances as evaluate_distances
from .evaluation import evaluate_features as evaluate_features
from .features import Features as Features
from .features import encode_data as encode_data
from .features import read_features as read_features
from .features import write_features as write_features
from .pairs import BODY_PARTS as BODY_PARTS
from .pairs import STRIPES as STRIPES
from .pairs import PairExplanation as PairExplanation
from .pairs import PartShare as PartShare
from .pairs import explain_pair as explain_pair
from .pairs import pair_energy as pair_energy
from .pairs import pairs_panel as pairs_panel
from .policies import Labels as Labels
from .policies import changed_protocol as changed_protocol
from .refinement import Refinement as Refinement
from .refinement import camera_normalised as camera_normalised
from .refinement import expand_queries as expand_queries
from .refinement import pool_views as pool_views
from .reranking import Reranking as Reranking
from .reranking import SharedNeighbours as SharedNeighbours
from .reranking import rerank_features as rerank_features
from .results import CameraPair as CameraPair
from .results import QueryResults as QueryResults
from .results import ReidEvaluation as ReidEvaluation
from .training import ReidRecipe as ReidRecipe
from .training import TestSettings as TestSettings
from .training import WalkerSettings as WalkerSettings
from .training import train as train
from .verification import Identification as Identification
from .verification import OperatingPoint as OperatingPoint
from .verification import Verification as Verification

# names until 0.2
Protocol = ReidProtocol
Failure = FailedQuery
Evaluation = ReidEvaluation
