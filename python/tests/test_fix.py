"""`fix` returns a copy in which every sample is processed by itself, and says what changed."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor, nn

from bastionai import ExportError, fix
from bastionai.fixing import unfixed


def batch_normed(channels: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, channels), nn.BatchNorm1d(channels), nn.ReLU(inplace=True), nn.Linear(channels, 2)
    )
    model.train()
    for _ in range(5):
        model(torch.randn(32, 4))  # gives the running statistics something to be
    return model


def samples_are_apart(model: nn.Module, x: Tensor) -> bool:
    together = model(x)
    alone = torch.cat([model(x[i : i + 1]) for i in range(len(x))])
    return torch.allclose(together, alone, atol=1e-5)


def test_batch_norm_mixes_samples_and_what_replaces_it_does_not():
    model, x = batch_normed(), torch.randn(8, 4)
    assert not torch.allclose(model(x)[:4], model(x[:4]), atol=1e-4)
    for choice in ("group", "freeze"):
        assert samples_are_apart(fix(model, batchnorm=choice, verbose=False).train(), x), choice


def test_the_model_itself_is_not_changed():
    model = batch_normed()
    fix(model, verbose=False)
    assert isinstance(model[1], nn.BatchNorm1d)
    assert model[2].inplace


def test_it_says_what_it_changed(capsys):
    fix(batch_normed())
    said = capsys.readouterr().err
    assert "1: BatchNorm1d(12) → FrozenBatchNorm" in said
    assert "statistics to keep" in said
    assert "2: ReLU in place → out of place" in said
    fix(nn.Linear(2, 2))
    assert "nothing to fix" in capsys.readouterr().err


def test_a_layer_with_statistics_is_frozen_and_a_new_one_grouped_unless_told_otherwise():
    model = nn.Sequential(batch_normed()[1], nn.BatchNorm1d(12))
    kinds = [type(layer).__name__ for layer in fix(model, verbose=False)]
    assert kinds == ["FrozenBatchNorm", "GroupNorm1d"]
    for choice, kind in (("group", "GroupNorm1d"), ("freeze", "FrozenBatchNorm")):
        assert {type(layer).__name__ for layer in fix(model, batchnorm=choice, verbose=False)} == {kind}


def test_statistics_of_an_old_checkpoint_without_a_count_of_batches_are_kept():
    layer = nn.BatchNorm1d(4)
    layer.running_mean.fill_(0.5)
    assert layer.num_batches_tracked == 0
    assert type(fix(layer, verbose=False)).__name__ == "FrozenBatchNorm"


def test_freezing_keeps_what_the_model_computes_in_evaluation():
    model = batch_normed().eval()
    frozen = fix(model, batchnorm="freeze", verbose=False).train()
    x = torch.randn(8, 4)
    torch.testing.assert_close(frozen(x), model(x))
    assert {name for name, _ in frozen.named_parameters()} == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("channels", [1, 2, 3, 7, 12, 31, 32, 48, 64, 96, 100])
def test_group_counts_divide_the_channels(channels):
    fixed = fix(nn.Sequential(nn.BatchNorm2d(channels)), verbose=False)
    norm = fixed[0]
    assert isinstance(norm, nn.GroupNorm)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= 32
    assert norm.num_groups < channels or channels == 1
    assert fixed(torch.randn(2, channels, 3, 3)).shape == (2, channels, 3, 3)


def test_one_dimensional_norms_take_both_ranks():
    fixed = fix(nn.Sequential(nn.BatchNorm1d(6)), verbose=False)
    for x in (torch.randn(5, 6), torch.randn(5, 6, 9)):
        assert samples_are_apart(fixed, x)
    frozen = fix(nn.Sequential(nn.BatchNorm1d(6)), batchnorm="freeze", verbose=False)
    for x in (torch.randn(5, 6), torch.randn(5, 6, 9)):
        assert samples_are_apart(frozen, x)


def test_scale_and_shift_are_kept():
    model = nn.Sequential(nn.BatchNorm1d(4))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(4.0))
    assert torch.equal(fix(model, verbose=False)[0].weight, torch.arange(4.0))


def test_a_shared_norm_stays_shared():
    norm = nn.BatchNorm1d(4)
    fixed = fix(nn.Sequential(norm, nn.Linear(4, 4), norm), verbose=False)
    assert fixed[0] is fixed[2]


def test_instance_norm_forgets_its_running_statistics():
    model = nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True))
    assert unfixed(model) == ["0"]
    fixed = fix(model, verbose=False)
    assert unfixed(fixed) == []
    assert not list(fixed.buffers())


def test_a_model_that_is_one_layer_is_replaced_as_a_whole():
    assert isinstance(fix(nn.BatchNorm2d(8), verbose=False), nn.GroupNorm)


def test_draws_of_speech_models_on_the_host_stop_and_are_named_once(capsys):
    config = transformers.Wav2Vec2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, conv_dim=(4,), conv_stride=(5,),
        conv_kernel=(10,), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    model = transformers.Wav2Vec2Model(config)
    fixed = fix(model)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "layerdrop=0.1 → layerdrop=0.0" in said[0]
    assert "mask_time_prob=0.05 → mask_time_prob=0.0" in said[1]
    assert (model.config.layerdrop, fixed.config.layerdrop) == (0.1, 0.0)


def test_wrong_choices_are_refused():
    with pytest.raises(ExportError, match="expected 'group' or 'freeze'"):
        fix(nn.Linear(2, 2), batchnorm="layer")
    with pytest.raises(ExportError, match="without running statistics"):
        fix(nn.BatchNorm1d(4, track_running_stats=False), batchnorm="freeze", verbose=False)
