"""Models of Hugging Face's libraries need no wrapper: logits are found, padding is not predicted."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from bastionai import Column, DataContract, ExportError, ModelRefused, _internal
from bastionai.exporting import ModelWithLoss, _join, export_bytes, prepare, prepare_scores
from bastionai.losses import CausalLanguageModel, classes_second

ROWS, LENGTH, WORDS, CLASSES = 4, 6, 20, 3
IDS = Column("input_ids", "int64", (LENGTH,), range=(0, WORDS - 1))
MASK = Column("attention_mask", "int64", (LENGTH,), range=(0, 1))
LABEL = Column("label", "int64", classes=CLASSES)


def contract(*columns: Column) -> DataContract:
    return DataContract(columns, declared_size=16)


def ids() -> Tensor:
    return torch.randint(3, WORDS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


def padding_mask() -> Tensor:
    return (torch.arange(LENGTH) < torch.tensor([[6], [4], [5], [3]])).long()


def gpt2() -> transformers.GPT2LMHeadModel:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=LENGTH, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).double().eval()


def bert(task: str) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=LENGTH,
        num_labels=CLASSES,
    )
    return getattr(transformers, f"BertFor{task}Classification")(config).eval()


def names_of(archive: bytes) -> list[str]:
    program = torch.export.load(io.BytesIO(archive))
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


# ---- losses as the library computes them, record by record ----


def test_tokens_and_mask_alone_give_the_librarys_own_loss_of_each_text():
    model = gpt2()
    joined = _join(model, "causal_lm", contract(IDS, MASK), None, None)
    assert joined.columns == ["input_ids", "attention_mask"]
    tokens, mask = ids(), padding_mask()
    losses = joined(tokens, mask)
    for row in range(ROWS):
        one = {"input_ids": tokens[row : row + 1], "attention_mask": mask[row : row + 1]}
        expected = model(**one, labels=torch.where(one["attention_mask"] == 0, -100, one["input_ids"])).loss
        # The library computes its loss in float32.
        torch.testing.assert_close(losses[row].float(), expected)


def test_labels_of_ignored_tokens_give_the_librarys_own_loss_of_each_text():
    model = gpt2()
    next_tokens = Column("labels", "int64", (LENGTH,), range=(-100, WORDS - 1))
    joined = _join(model, "causal_lm", contract(IDS, MASK, next_tokens), None, None)
    assert joined.columns == ["input_ids", "attention_mask", "labels"]
    tokens, mask = ids(), padding_mask()
    labels = torch.where((mask == 0) | (torch.arange(LENGTH) < 2), -100, tokens)
    losses = joined(tokens, mask, labels)
    for row in range(ROWS):
        one = slice(row, row + 1)
        expected = model(input_ids=tokens[one], attention_mask=mask[one], labels=labels[one]).loss
        # The library computes its loss in float32.
        torch.testing.assert_close(losses[row].float(), expected)


def test_labelled_tokens_give_the_librarys_own_loss_of_each_text():
    model = bert("Token")
    labels = torch.randint(0, CLASSES, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))
    labels[1, 2:] = -100
    column = Column("labels", "int64", (LENGTH,), range=(-100, CLASSES - 1))
    losses = _join(model, "cross_entropy", contract(IDS, column), None, None)(ids(), labels)
    for row in range(ROWS):
        expected = model(input_ids=ids()[row : row + 1], labels=labels[row : row + 1]).loss
        # The library computes its loss in float32.
        torch.testing.assert_close(losses[row].float(), expected)


@pytest.mark.parametrize(
    ("shape", "target", "named", "moved"),
    [
        ((4, 6, 3), (4, 6), False, True),  # only one reading fits
        ((4, 3, 6), (4, 6), True, False),
        ((4, 6, 6), (4, 6), False, False),  # both fit: a tensor is PyTorch's
        ((4, 6, 6), (4, 6), True, True),  # and what is called logits has its classes last
        ((4, 3, 5, 6), (4, 5, 6), True, False),
        ((4, 3), (4,), True, False),
    ],
)
def test_classes_are_found_where_a_model_puts_them(shape, target, named, moved):
    output = torch.arange(torch.Size(shape).numel()).reshape(shape).float()
    found = classes_second(output, torch.zeros(target, dtype=torch.int64), named)
    assert torch.equal(found, output.transpose(1, 2) if moved else output)


def test_a_mask_of_another_shape_says_nothing_of_padding():
    loss = CausalLanguageModel(ignore_index=0)
    assert loss.without_padding(ids(), torch.zeros(ROWS, 2)) is not None
    torch.testing.assert_close(loss.without_padding(ids(), torch.zeros(ROWS, 2)), ids())
    torch.testing.assert_close(loss.without_padding(ids(), None), ids())
    assert torch.equal(loss.without_padding(ids(), padding_mask()), ids() * padding_mask())


# ---- what is exported ----


def test_a_models_caches_are_off_in_the_archive_and_as_they_were_in_the_model():
    model = gpt2().float()
    assert model.config.use_cache
    prepared = prepare(model, "causal_lm", contract(IDS, MASK))
    assert model.config.use_cache
    assert "aten.cat.default" not in names_of(prepared.archive), "keys would be joined to those of an empty cache"


def test_gpt2s_gelu_is_exported_as_one_operator_with_the_same_numbers_and_stays_as_it_was_in_the_model():
    model = gpt2()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    archive = prepare(model, "causal_lm", contract(IDS, MASK)).archive
    assert "aten.gelu.default" in names_of(archive)
    assert not {"aten.tanh.default", "aten.pow.Tensor_Scalar"} & set(names_of(archive))
    assert type(model.transformer.h[0].mlp.act).__name__ == "NewGELUActivation"
    exported = torch.export.load(io.BytesIO(archive)).module()(ids(), padding_mask())
    expected = _join(model, "causal_lm", contract(IDS, MASK), None, None).eval()(ids(), padding_mask())
    assert exported.dtype == torch.float64
    torch.testing.assert_close(exported, expected, rtol=1e-12, atol=1e-12)


def test_a_language_models_logits_are_not_copied_by_its_loss():
    names = names_of(prepare(gpt2(), "causal_lm", contract(IDS, MASK)).archive)
    after_the_head = names[len(names) - names[::-1].index("aten.linear.default") :]
    softmax = after_the_head.index("aten.log_softmax.int")
    assert not {"aten.slice.Tensor", "aten.ones_like.default"} & set(after_the_head[:softmax])


def test_a_new_head_is_trained_alone_where_the_rest_is_frozen():
    model = bert("Sequence")
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    prepared = prepare(model, "cross_entropy", contract(IDS, MASK, LABEL))
    text = _internal.check_archive(prepared.archive, contract(IDS, MASK, LABEL).to_json(), prepared.input_columns)
    assert text.count("tap") == 1, text


def test_a_library_model_can_be_evaluated():
    declared = contract(IDS, MASK, LABEL)
    prepared = prepare_scores(bert("Sequence"), "cross_entropy", declared)
    text = _internal.check_scores_archive(prepared.archive, declared.to_json(), prepared.input_columns)
    assert "[B, 3]" in text
    program = torch.export.load(io.BytesIO(prepared.archive)).module()
    scores, label = program(ids(), padding_mask(), torch.tensor([0, 1, 2, 0]))
    expected = bert("Sequence")(input_ids=ids(), attention_mask=padding_mask()).logits
    torch.testing.assert_close(scores, expected)
    assert label.tolist() == [0, 1, 2, 0]


class Blocks(nn.Module):
    """Gradients stop at the first block; the second is under an autocast that is off."""

    def __init__(self, autocast: bool = False) -> None:
        super().__init__()
        self.stopped, self.head, self.autocast = nn.Linear(4, 4), nn.Linear(4, CLASSES), autocast

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            table = torch.cos(torch.arange(4, device=x.device, dtype=torch.float32))
            hidden = self.stopped(x).type_as(x) * table
        with torch.autocast("cpu", enabled=self.autocast, dtype=torch.bfloat16):
            hidden = hidden.to(x.device, torch.float32) + x.to(torch.float32, copy=True)
        return self.head(hidden)


FEATURES = contract(Column("x", "float32", (4,), range=(-1, 1)), LABEL)


def test_blocks_without_gradients_are_written_out_and_stay_without():
    torch.manual_seed(0)
    module = Blocks()
    archive = prepare(module, "cross_entropy", FEATURES).archive
    names = names_of(archive)
    assert not [name for name in names if "wrap" in name or "aten.to." in name or "type_as" in name]
    program = torch.export.load(io.BytesIO(archive)).module()
    x, y = torch.rand(5, 4), torch.randint(0, CLASSES, (5,))
    losses, expected = program(x, y), F.cross_entropy(module(x), y, reduction="none")
    torch.testing.assert_close(losses, expected)
    ours = {name: parameter for name, parameter in program.named_parameters() if "head" in name}
    found = torch.autograd.grad(losses.sum(), list(ours.values()))
    wanted = torch.autograd.grad(expected.sum(), [module.head.weight, module.head.bias])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    text = _internal.check_archive(archive, FEATURES.to_json(), ["x", "label"])
    assert text.count("tap") == 1, f"the stopped layer is not trained:\n{text}"


def test_a_loss_that_leaves_a_block_without_gradients_keeps_its_name():
    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return x.sum(1)

    archive = export_bytes(Whole(), (torch.rand(3, 4),))
    assert torch.equal(torch.export.load(io.BytesIO(archive)).module()(torch.ones(2, 4)), torch.full((2,), 4.0))


def test_an_autocast_that_is_on_is_refused_with_the_remedy():
    with pytest.raises(ExportError, match=r"bfloat16 under torch\.autocast.*\.to\(dtype\)"):
        prepare(Blocks(autocast=True), "cross_entropy", FEATURES)


def test_a_sub_graph_in_an_archive_of_plain_torch_export_is_refused_by_the_checker():
    module = ModelWithLoss(Blocks(), None, ["x"], None, False)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(module, (torch.rand(3, 4),), dynamic_shapes=(({0: batch},),), strict=False)
    archive = io.BytesIO()
    torch.export.save(program, archive)
    with pytest.raises(ModelRefused, match="sub-graph") as caught:
        _internal.check_archive(archive.getvalue(), None, [])
    assert any(refusal.rule == "T7" for refusal in caught.value.refusals)


@pytest.mark.parametrize("change", [{}, {"dim": 1}, {"prepend": True}, {"append": True, "dim": -2}])
def test_differences_are_exported_as_what_they_are(change):
    class Differences(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            options = {name: x if value is True else value for name, value in change.items()}
            return torch.diff(x, **options).flatten(1).sum(1)

    archive = export_bytes(Differences(), (torch.rand(3, 4, 5),))
    x = torch.rand(6, 4, 5)
    torch.testing.assert_close(torch.export.load(io.BytesIO(archive)).module()(x), Differences()(x))
    assert not [name for name in names_of(archive) if "diff" in name]


def test_a_column_that_a_model_does_not_know_is_never_taken_for_another_argument():
    length = Column("text_length", "int64", (LENGTH,), range=(0, 1))
    declared = contract(IDS, MASK, length, LABEL)
    for made in (prepare, lambda model, loss, data: prepare_scores(model, loss, data)):
        with pytest.raises(ExportError, match=r"'text_length' is no argument of Bert.*as 'token_type_ids'.*inputs="):
            made(bert("Sequence"), "cross_entropy", declared)
    named = _join(bert("Sequence"), "cross_entropy", declared, ["input_ids", "attention_mask"], None)
    assert named.columns == ["input_ids", "attention_mask", "label"]


def test_columns_chosen_in_order_are_passed_by_name_where_the_order_would_make_them_something_else():
    model, tokens, mask = gpt2(), ids(), padding_mask()
    chosen = _join(model, "causal_lm", contract(IDS, MASK), ["input_ids", "attention_mask"], None)
    assert chosen.by_name
    torch.testing.assert_close(
        chosen(tokens, mask), _join(model, "causal_lm", contract(IDS, MASK), None, None)(tokens, mask)
    )

    class Two(nn.Module):
        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            return x - z

    columns = [Column(name, "float32", (3,), range=(0, 1)) for name in ("x", "z")]
    assert not _join(Two(), "cross_entropy", contract(*columns, LABEL), ["z", "x"], None).by_name


def test_a_model_without_logits_is_refused():
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"hidden": x}

    with pytest.raises(ExportError, match="something with logits"):
        prepare(Hidden(), "cross_entropy", FEATURES)


# ---- through the real server ----


@pytest.mark.e2e
def test_a_library_model_is_rehearsed_trained_and_given_back(connect):
    declared = DataContract([IDS, MASK, LABEL], declared_size=64)
    texts = torch.utils.data.TensorDataset(
        torch.randint(3, WORDS, (60, LENGTH)),
        (torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (60, 1))).long(),
        torch.randint(0, CLASSES, (60,)),
    )
    connect("owner-of-texts").RemoteDataset(
        texts, 8.0, "texts", contract=declared, may_train="anyone", delta=1e-3, verbose=False
    )
    client = connect("scientist")
    dataset = next(each for each in client.list_remote_datasets() if each.name == "texts")
    model = bert("Sequence")
    learner = client.RemoteLearner(
        model, dataset, loss="cross_entropy", optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3), batch_size=16
    )
    assert learner.rehearse(steps=2, progress=False).state == "succeeded"
    assert learner.fit(steps=3, eps=4.0, progress=False).state == "succeeded"
    trained = learner.get_model()
    assert isinstance(trained, transformers.BertForSequenceClassification)
    assert not torch.equal(trained.classifier.weight, model.classifier.weight)
    assert trained(input_ids=ids(), attention_mask=padding_mask()).logits.shape == (ROWS, CLASSES)
