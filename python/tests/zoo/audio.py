"""Audio: convolutions on raw waveforms, and the encoders of speech that transformers has, small."""

from __future__ import annotations

import functools

import transformers
from torch import Tensor, nn

from bastionai import Column, DataContract, fix
from zoo.case import Case, Model

CLASSES, SAMPLES = 3, 400
_ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8, 8),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 2),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 12,
    "num_labels": CLASSES,
}


class Waveform(nn.Module):
    """Convolutions straight on the samples, as M5 (Dai et al. 2017, https://arxiv.org/abs/1610.00087)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 8, 80, stride=4),
            nn.BatchNorm1d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool1d(4),
            nn.Conv1d(8, 16, 3, padding="same"),
            nn.BatchNorm1d(16),
            nn.ReLU(inplace=True),
            nn.AvgPool1d(4),
            nn.Conv1d(16, 16, 3, dilation=2, groups=4),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(16, CLASSES),
        )

    def forward(self, input_values: Tensor) -> Tensor:
        return self.net(input_values.unsqueeze(1))


def contract() -> DataContract:
    """A mono waveform of a fixed length."""
    wave = Column("input_values", "float32", (SAMPLES,), range=(-1, 1))
    return DataContract([wave, Column("label", "int64", classes=CLASSES)], declared_size=16)


def _waveform() -> Model:
    return Model(fix(Waveform(), batchnorm="group", verbose=False), contract(), "cross_entropy")


def _speech(name: str, **more: object) -> Model:
    config = getattr(transformers, f"{name}Config")(**{**_ENCODER, **more})
    module = getattr(transformers, f"{name}ForSequenceClassification")(config)
    # LayerDrop and SpecAugment draw once for a whole batch.
    return Model(fix(module, verbose=False), contract(), "cross_entropy")


def _spectrogram() -> Model:
    config = transformers.ASTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        patch_size=4,
        frequency_stride=4,
        time_stride=4,
        max_length=16,
        num_mel_bins=12,
        num_labels=CLASSES,
    )
    columns = [
        Column("input_values", "float32", (16, 12), range=(-1, 1)),
        Column("label", "int64", classes=CLASSES),
    ]
    module = transformers.ASTForAudioClassification(config)
    return Model(module, DataContract(columns, declared_size=16), "cross_entropy")


def _case(name: str, shows: str, *arguments: object, opacus: str = "", **more: object) -> Case:
    return Case(name, shows, functools.partial(_speech, *arguments, **more), opacus=opacus)


CASES = [
    Case("waveform", "`Conv1d` on raw samples, GroupNorm", _waveform),
    _case("wav2vec2-group", "`Wav2Vec2`, group norm, weight-normed positions", "Wav2Vec2"),
    _case(
        "wav2vec2-layer",
        "`Wav2Vec2`, layer norm first, convolutions with bias",
        "Wav2Vec2",
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
    ),
    _case(
        "wav2vec2-weighted",
        "`Wav2Vec2`, trained sum of its layers",
        "Wav2Vec2",
        opacus="none of the sum's weights, which are parameters of no layer that its hooks know",
        use_weighted_layer_sum=True,
    ),
    _case("hubert", "`Hubert`", "Hubert"),
    _case(
        "data2vec-audio",
        "`Data2VecAudio`: five positional convolutions",
        "Data2VecAudio",
        num_conv_pos_embeddings=2,
        conv_pos_kernel_size=3,
    ),
    _case(
        "wavlm",
        "`WavLM`: gated relative positions",
        "WavLM",
        opacus="its hooks fail in a layer whose parameters of its own only some blocks have",
        num_buckets=8,
        max_bucket_distance=16,
    ),
    Case(
        "ast",
        "`ASTForAudioClassification`: patches of a spectrogram",
        _spectrogram,
    ),
]
