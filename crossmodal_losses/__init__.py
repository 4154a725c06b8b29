"""Cross-modal metric learning losses over the cosine similarities of two batches of embeddings."""

from crossmodal_losses.diagnostics import Diagnosis, diagnose
from crossmodal_losses.distributed import GatheredLoss, RingLoss
from crossmodal_losses.gradient_cache import GradientCache
from crossmodal_losses.losses import LOSSES
from crossmodal_losses.losses.base import PairLoss
from crossmodal_losses.losses.nt_xent import NTXent, nt_xent
from crossmodal_losses.losses.sigmoid import Sigmoid, sigmoid
from crossmodal_losses.losses.sup_con import SupCon, sup_con
from crossmodal_losses.losses.triplet_max import TripletMax, triplet_max
from crossmodal_losses.losses.triplet_sum import TripletSum, triplet_sum
from crossmodal_losses.losses.triplet_weighted import TripletWeighted, triplet_weighted
from crossmodal_losses.losses.triplet_weighted_mined import TripletWeightedMined, triplet_weighted_mined
from crossmodal_losses.metrics import DirectionMetrics, RetrievalMetrics, retrieval_metrics
from crossmodal_losses.similarity import cosine_similarity

__version__ = "0.2.0"

__all__ = [
    "LOSSES",
    "Diagnosis",
    "DirectionMetrics",
    "GatheredLoss",
    "GradientCache",
    "NTXent",
    "PairLoss",
    "RetrievalMetrics",
    "RingLoss",
    "Sigmoid",
    "SupCon",
    "TripletMax",
    "TripletSum",
    "TripletWeighted",
    "TripletWeightedMined",
    "cosine_similarity",
    "diagnose",
    "nt_xent",
    "retrieval_metrics",
    "sigmoid",
    "sup_con",
    "triplet_max",
    "triplet_sum",
    "triplet_weighted",
    "triplet_weighted_mined",
]
