"""The optimisers that surgery is tested on, by name."""

import torch

OPTIMIZERS = {
    "sgd": lambda p, **o: torch.optim.SGD(p, lr=0.05, **o),
    "momentum": lambda p, **o: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True, **o),
    "adam": lambda p, **o: torch.optim.Adam(p, lr=0.01, **o),
    "adamw": lambda p, **o: torch.optim.AdamW(p, lr=0.01, amsgrad=True, **o),
    "rmsprop": lambda p, **o: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True, **o),
    "adam_fused": lambda p, **o: torch.optim.Adam(
        p, lr=0.01, **({"fused": True} | {k: v for k, v in o.items() if k != "foreach"})
    ),
}


def state_of(optimizer, parameters):
    """Copies of the state of each of `parameters`, in order; tensors and numbers alike."""
    return [
        {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in optimizer.state.get(p, {}).items()}
        for p in parameters
    ]


def same_state(first, second):
    """Bit for bit, keys and all."""
    return len(first) == len(second) and all(
        a.keys() == b.keys()
        and all(
            torch.equal(a[k], b[k])
            if isinstance(a[k], torch.Tensor) and isinstance(b[k], torch.Tensor)
            else a[k] == b[k]
            for k in a
        )
        for a, b in zip(first, second, strict=True)
    )
