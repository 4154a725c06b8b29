"""The losses, one file each, and the table of all of them.

``LOSSES`` maps a loss's name, which is also the name of its function of S, to its Module. Tests, benchmarks and the
reference model iterate over this table: a loss entered here is tested, measured and trained.
"""

from crossmodal_losses.losses.base import PairLoss
from crossmodal_losses.losses.nt_xent import NTXent
from crossmodal_losses.losses.sigmoid import Sigmoid
from crossmodal_losses.losses.sup_con import SupCon
from crossmodal_losses.losses.triplet_max import TripletMax
from crossmodal_losses.losses.triplet_sum import TripletSum
from crossmodal_losses.losses.triplet_weighted import TripletWeighted
from crossmodal_losses.losses.triplet_weighted_mined import TripletWeightedMined

LOSSES: dict[str, type[PairLoss]] = {
    "triplet_sum": TripletSum,
    "triplet_max": TripletMax,
    "triplet_weighted": TripletWeighted,
    "triplet_weighted_mined": TripletWeightedMined,
    "nt_xent": NTXent,
    "sup_con": SupCon,
    "sigmoid": Sigmoid,
}
