from .assessment import Assessment as Assessment, assess as assess, changed_protocol as changed_protocol
from .auditing import Audit as Audit, audit as audit
from .data import read_data as read_data
from .evaluation import evaluate_distances as evaluate_distances, evaluate_features as evaluate_features
from .features import (
    Features as Features,
    encode_data as encode_data,
    read_features as read_features,
    write_features as write_features,
)
from .mistakes import Answer as Answer, Failure as Failure, Promotion as Promotion
from .pairs import (
    BODY_PARTS as BODY_PARTS,
    STRIPES as STRIPES,
    PairExplanation as PairExplanation,
    PartShare as PartShare,
    explain_pair as explain_pair,
    pairs_panel as pairs_panel,
)
from .part_energy import pair_energy as pair_energy
from .policies import Labels as Labels, Protocol as Protocol
from .records import ReidData as ReidData, ReidImage as ReidImage
from .refinement import Refinement as Refinement
from .reranking.k_reciprocal import (
    Reranking as Reranking,
    SharedNeighbours as SharedNeighbours,
    rerank_features as rerank_features,
)
from .reranking.query_expansion import (
    camera_normalised as camera_normalised,
    expand_queries as expand_queries,
    pool_views as pool_views,
)
from .results import CameraPair as CameraPair, Evaluation as Evaluation, QueryResults as QueryResults
from .training import (
    ReidRecipe as ReidRecipe,
    TestSettings as TestSettings,
    WalkerSettings as WalkerSettings,
    train as train,
)
from .verification import (
    Identification as Identification,
    OperatingPoint as OperatingPoint,
    Verification as Verification,
)
from .walkers import WalkerSet as WalkerSet, write_walkers as write_walkers
