"""What the losses cost, beside what people use today; ``make bench`` runs it and writes results/."""
