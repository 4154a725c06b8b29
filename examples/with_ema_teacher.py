"""A teacher, the moving average of the encoders, gives the candidates: python examples/with_ema_teacher.py

Each student learns to find the teacher's embedding of its partner, among those of this batch and of earlier ones.
"""

from collections import deque

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from crossmodal_losses import NTXent, retrieval_metrics

torch.manual_seed(0)
hidden = torch.randn(512, 5)
views = [hidden @ torch.randn(5, width) + 0.1 * torch.randn(512, width) for width in (20, 30)]
students = [nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 16)) for width in (20, 30)]
teachers = [AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.9)) for student in students]
loss = NTXent(temperature=0.2, learn_temperature=True, direction_weights=(1, 0))  # students search among teachers
optimizer = torch.optim.Adam([*students[0].parameters(), *students[1].parameters(), *loss.parameters()], lr=1e-2)
queues: list[deque[torch.Tensor]] = [deque(maxlen=3), deque(maxlen=3)]  # of the teachers' last three batches
for _ in range(10):
    for batch in zip(*(view.split(64) for view in views), strict=True):
        x, y = (student(part) for student, part in zip(students, batch, strict=True))
        with torch.no_grad():
            u, v = (teacher(part) for teacher, part in zip(teachers, batch, strict=True))
        older_u, older_v = (torch.cat([*queue]) if queue else None for queue in queues)
        optimizer.zero_grad()
        value = loss(x, v, negatives_y=older_v) + loss(y, u, negatives_y=older_u)
        value.backward()
        optimizer.step()
        for teacher, student, queue, embeddings in zip(teachers, students, queues, (u, v), strict=True):
            teacher.update_parameters(student)
            queue.append(embeddings)
f, g = teachers
recall = retrieval_metrics(f(views[0]), g(views[1])).x_to_y.recall[1]
print(f"loss {value.item():.6f}, temperature {loss.temperature:.6f}, R@1 {recall:.3f}")
