"""What the losses cost: one module a question, each of which writes its table and plot into results/.

``python -m benchmarks`` asks all of them that a CPU can answer; ``python -m benchmarks.gpu`` what only a GPU can.
"""
