"""Ten small changes that add up: the worked example of logistic regression, by hand and with unfooled."""

import torch

import unfooled as uf

w = torch.tensor([-1.0, -1, 1, -1, 1, -1, 1, 1, -1, 1])
x = torch.tensor([2.0, -1, 3, -2, 2, 2, 1, -4, 5, 1])


def logits(inputs: torch.Tensor) -> torch.Tensor:
    """Map inputs [n, 10] to the scores of class 0 and class 1, [n, 2]; p(class 1) is the sigmoid of w·x."""
    score = inputs @ w
    return torch.stack([torch.zeros_like(score), score], dim=1)


def probability(inputs: torch.Tensor) -> float:
    """Return p(class 1) of one input [10]."""
    return float(logits(inputs[None]).softmax(1)[0, 1])


# by hand: the score is linear, so its gradient is w, and the best change of at most 0.5 per number is 0.5 sign(w)
by_hand = x + 0.5 * w.sign()

# with unfooled: one FGSM step, in a box that is wide enough for these numbers
target = uf.Target(logits, bounds=(-10.0, 10.0))
label = logits(x[None]).argmax(1)  # class 0
result = uf.run(uf.attacks.fgsm(), target, x[None], label, uf.linf(0.5))

if __name__ == "__main__":
    print(f"p(class 1) before            {probability(x):.4f}")
    print(f"after the step by hand       {probability(by_hand):.4f}")
    print(f"after the step with unfooled {probability(result.x_adv[0]):.4f}")
