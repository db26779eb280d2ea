"""Writes images.json: per-sample gradients of the `images` fixture from torch.func, clipped sums from Opacus' hooks.

Run with the pinned torch and Opacus: .venv/bin/python crates/trainer/tests/data/generate_images.py
Neither is code of ours: torch.func differentiates the module for one sample at a time under vmap, Opacus
computes per-sample gradients layer by layer (grad_sample) from the module itself, and clips them by its own optimizer.
"""

import json
import pathlib
import sys

import opacus
import torch
from generate_gradients import load, made_up
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[3] / "scripts"))
from generate_graph_fixtures import MODELS, Images  # noqa: E402

#: Clipping norms: all, some and none of the samples clipped.
NORMS = [0.05, 1.06, 100.0]


def images(state):
    """The module with the archive's weights."""
    module = Images()
    module.load_state_dict(state)
    return module


def per_sample_gradients(module, inputs):
    """`{parameter: [B, ...]}` by torch.func."""
    parameters = {name: value.detach() for name, value in module.named_parameters()}

    def loss(values, *sample):
        return torch.func.functional_call(module, values, tuple(each.unsqueeze(0) for each in sample))[0]

    in_dims = (None, *(0 for _ in inputs))
    return torch.func.vmap(torch.func.grad(loss), in_dims=in_dims)(parameters, *inputs)


def clipped_sum(state, inputs, norm):
    """`{parameter: sum}` by Opacus' hooks and optimizer, without noise."""
    module = images(state)
    wrapped = GradSampleModule(module, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=norm,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    wrapped(*inputs).sum().backward()
    optimizer.clip_and_accumulate()
    return {name: parameter.summed_grad for name, parameter in module.named_parameters()}


def main() -> None:
    program = load("images")
    inputs = [made_up(position, example) for position, example in enumerate(MODELS["images"][1])]
    gradients = per_sample_gradients(images(program.state_dict), inputs)
    norms = torch.stack([each.flatten(1).norm(dim=1) for each in gradients.values()]).norm(dim=0)
    print("norms", sorted(norms.tolist()))
    out = {
        "torch": torch.__version__,
        "opacus": opacus.__version__,
        "gradients": {name: each.flatten(1).tolist() for name, each in gradients.items()},
        "clipped": [
            {
                "max_grad_norm": norm,
                "sums": {
                    name: each.flatten().tolist()
                    for name, each in clipped_sum(program.state_dict, inputs, norm).items()
                },
            }
            for norm in NORMS
        ],
    }
    (HERE / "images.json").write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
