"""Writes gradients.json: PyTorch's own losses and per-sample gradients of the graph crate's exported fixtures.

Run with the pinned torch: .venv/bin/python crates/trainer/tests/data/generate_gradients.py [names of models]
The inputs are made by the same formula in tests/exported.rs; dropout is switched off on both sides.
"""

import io
import json
import pathlib
import sys
import zipfile

import torch

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parents[2] / "graph/tests/fixtures"
ACCEPTED = [
    "classifier",
    "cross_entropy",
    "regressor",
    "binary",
    "broadcast",
    "zoo",
    "encoder",
    "text",
    "functions",
    "composed",
    "images",
    "plain",
]
BATCH, HEAD = 16, 5

sys.path.insert(0, str(HERE.parents[3] / "scripts"))
from generate_graph_fixtures import MODELS  # noqa: E402  (the fixtures' example inputs)


def load(name: str) -> torch.export.ExportedProgram:
    """Torch insists on the pickled sample inputs that the fixtures leave out."""
    source, target, samples = (
        zipfile.ZipFile(FIXTURES / f"{name}.pt2"),
        io.BytesIO(),
        io.BytesIO(),
    )
    torch.save((MODELS[name][1], {}), samples)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as out:
        for member in source.namelist():
            out.writestr(zipfile.ZipInfo(member), source.read(member))
        root = source.namelist()[0].split("/")[0]
        out.writestr(zipfile.ZipInfo(f"{root}/data/sample_inputs/model.pt"), samples.getvalue())
    target.seek(0)
    return torch.export.load(target)


def made_up(position: int, example: torch.Tensor) -> torch.Tensor:
    shape = (BATCH, *example.shape[1:])
    numbers = torch.arange(torch.Size(shape).numel()) * 7919 + 13 * position
    if example.is_floating_point():
        return (numbers.remainder(1000).double() / 500 - 1).to(example.dtype).reshape(shape)
    return numbers.remainder(2).to(example.dtype).reshape(shape)


def without_dropout(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    for node in module.graph.nodes:
        if "dropout" in str(node.target):
            node.args = (node.args[0], 0.0, *node.args[2:])
        elif "scaled_dot_product" in str(node.target) and len(node.args) > 4:
            node.args = (*node.args[:4], 0.0, *node.args[5:])
    module.recompile()
    return module


def main() -> None:
    file = HERE / "gradients.json"
    out = {"torch": torch.__version__, "models": {}}
    if sys.argv[1:]:
        out["models"] = json.loads(file.read_text())["models"]
    for name in sys.argv[1:] or ACCEPTED:
        program = load(name)
        module = without_dropout(program.module())
        inputs = [made_up(i, example) for i, example in enumerate(MODELS[name][1])]
        parameters = dict(module.named_parameters(remove_duplicate=True))
        trained = {key: value for key, value in parameters.items() if value.requires_grad}
        losses = module(*inputs)
        rows = []
        for row in range(BATCH):
            gradients = torch.autograd.grad(losses[row], trained.values(), retain_graph=True, allow_unused=True)
            described = {}
            for (key, _parameter), gradient in zip(trained.items(), gradients, strict=False):
                if gradient is not None:
                    flat = gradient.double().flatten()
                    described[key] = {
                        "norm": flat.norm().item(),
                        "head": flat[:HEAD].tolist(),
                    }
            rows.append(described)
        out["models"][name] = {
            "losses": losses.detach().double().tolist(),
            "gradients": rows,
        }
    file.write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
