"""Rows that the paper does not have: losses of later years beside NT-Xent, under the same conditions.

The paper's own rows and settings are in :mod:`reference_model.paper`.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from reference_model import InputError
from reference_model.paper import LOSS_NAMES, TABLES, Experiment, select_rows

TABLE = "beyond"
BASE = "nt_xent"  # the row of the paper that these are compared with
QUEUE = 4096  # embeddings


@dataclass(frozen=True)
class Variant:
    """A row's loss: its title in the table, and the settings of a run."""

    title: str
    loss: str
    settings: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = {
    "sup_con": Variant("Supervised contrastive", "sup_con"),
    "sup_con_together": Variant("Supervised contrastive, captions together", "sup_con", {"captions_together": True}),
    "sigmoid": Variant("Sigmoid, learned", "sigmoid", {"learn_temperature": True}),
    "nt_xent_learned": Variant("NT-Xent, learned temperature", BASE, {"learn_temperature": True}),
    "nt_xent_queue": Variant(f"NT-Xent, queue of {QUEUE}", BASE, {"queue": QUEUE}),
}
TITLES = LOSS_NAMES | {name: variant.title for name, variant in VARIANTS.items()}


def settings_of(loss: str) -> dict[str, Any]:
    """Return the settings of a run for the loss of a row.

    >>> settings_of("nt_xent_queue")
    {'loss': 'nt_xent', 'queue': 4096}
    """
    variant = VARIANTS.get(loss, Variant(loss, loss))
    return {"loss": variant.loss, **variant.settings}


def rows_of_tables(tables: Sequence[str], *, losses: Sequence[str] = (), **chosen: Any) -> dict[str, list[Experiment]]:
    """Return the rows of tables, :data:`TABLE` among them, as :func:`reference_model.paper.select_rows` does."""
    of_paper = [table for table in tables if table != TABLE]
    rows = select_rows(of_paper, losses=losses, **chosen)
    if TABLE in tables:
        base: list[Experiment] = []
        for table in TABLES:
            with suppress(InputError):  # a data set that is in the other table alone
                base += [row for row in select_rows([table], losses=[BASE], **chosen)[table] if row not in base]
        names = [name for name in (BASE, *VARIANTS) if name in (losses or (BASE, *VARIANTS))]
        rows[TABLE] = [{**row, "loss": name} for row in base for name in names]
        if not rows[TABLE]:
            raise InputError(
                "expected rows beyond the paper, got none of these data sets, encoders, losses, batch sizes"
            )
    return rows
