"""The reference experiment: PANNs ResNet-38 + BERT, trained with the losses of ``crossmodal_losses``.

Mei et al. 2022, "On Metric Learning for Audio-Text Cross-Modal Retrieval", sections 2.2 and 3.
"""


class InputError(ValueError):
    """Wrong input from the user; the command line prints its text alone, without a traceback."""
