"""Benchmarks: what the losses cost. One module answers one question and writes its table and plot into results/.

``python -m benchmarks`` runs all that a CPU can answer; ``make gpu`` runs what only a GPU can. The
benchmarks of losses need ``crossmodal_losses`` alone; those in ``training`` need ``reference_model``, too.
"""
