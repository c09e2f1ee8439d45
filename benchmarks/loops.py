"""Training loops as one writes them by hand, with the package's network and the formulas of its losses."""

import torch
from torch.utils.data import DataLoader, Dataset


class ItemDataset(Dataset):
    """Rows one by one."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


def obvious_epoch(network, criterion, log_sigma, multipliers, rho, optimizer, x, y, batch_size, clip=1.0):
    """Kendall-Gal, PCGrad and constraints the obvious way.

    Items through a `DataLoader`, one ``backward(retain_graph=True)`` per task, projections pair by pair in loops over
    the parameters.
    """
    parameters = list(network.parameters())
    network.train()
    total = 0.0
    for xb, yb in DataLoader(ItemDataset(x, y), batch_size=batch_size, shuffle=True):
        prediction = xb[:, 24:] + network(xb)
        terms = criterion.formulas(prediction, yb)
        tasks = [
            0.5 * torch.exp(-2 * s) * criterion.weights[name] * terms[name] + s
            for s, name in zip(log_sigma, terms, strict=True)
        ]
        state = prediction.reshape(-1, 6, 4)
        length = (state[..., :3].square().sum(dim=-1) + 1e-12).sqrt()
        violations = torch.stack(
            [torch.relu(-state[..., 3]).mean(), torch.relu(length / state[..., 3].clamp(min=1e-3) - 1).mean()]
        )
        tasks.append((multipliers * violations + 0.5 * rho * violations**2).sum())
        optimizer.zero_grad()
        gradients = []
        for task in tasks:
            for parameter in parameters:
                parameter.grad = None
            task.backward(retain_graph=True)
            gradients.append([parameter.grad.clone() for parameter in parameters])
        final = [torch.zeros_like(parameter) for parameter in parameters]
        for i, gradient in enumerate(gradients):
            projected = [part.clone() for part in gradient]
            for j in torch.randperm(len(tasks)).tolist():
                if i == j:
                    continue
                inner = sum((a * b).sum() for a, b in zip(projected, gradients[j], strict=True))
                if inner < 0:
                    square = sum((b * b).sum() for b in gradients[j])
                    projected = [a - inner / square * b for a, b in zip(projected, gradients[j], strict=True)]
            final = [a + b for a, b in zip(final, projected, strict=True)]
        for parameter, gradient in zip(parameters, final, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        with torch.no_grad():
            multipliers.add_(violations, alpha=1e-2).clamp_(min=0)
        total += sum(task.item() for task in tasks)
    return total


def sliced_epoch(network, criterion, optimizer, x, y, batch_size, clip=1.0):
    """The sum of the losses as quickly as a plain loop has it: slices, fused AdamW, nothing read out."""
    parameters = list(network.parameters())
    network.train()
    total = torch.zeros(())
    order = torch.randperm(len(x))
    for start in range(0, len(x), batch_size):
        rows = order[start : start + batch_size]
        xb = x[rows]
        optimizer.zero_grad()
        terms = criterion.formulas(xb[:, 24:] + network(xb), y[rows])
        loss = torch.stack([criterion.weights[name] * value for name, value in terms.items()]).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        total += loss.detach()
    return total
