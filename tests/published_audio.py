"""Small audio models of published families, with new weights, and their feature extractors."""

from collections.abc import Callable
from typing import Any

from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForPreTraining,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)


def clap(*, fused: bool) -> tuple[Any, Any]:
    audio = ClapAudioConfig(
        patch_embeds_hidden_size=8, depths=[1, 1], num_attention_heads=[1, 2], hidden_size=16, spec_size=64,
        num_mel_bins=16, enable_fusion=fused, aff_block_r=1,
    )  # fmt: skip
    words = ClapTextConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    config = ClapConfig(text_config=words.to_dict(), audio_config=audio.to_dict(), projection_dim=8)
    truncation = "fusion" if fused else "rand_trunc"
    return ClapModel(config), ClapFeatureExtractor(
        feature_size=16, max_length_s=1, truncation=truncation, padding="repeatpad"
    )


LAYER: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}


def ast() -> tuple[Any, Any]:
    model = ASTForAudioClassification(ASTConfig(**LAYER, num_mel_bins=16, max_length=64, num_labels=3))
    return model, ASTFeatureExtractor(num_mel_bins=16, max_length=64)


def wav2vec2() -> tuple[Any, Any]:
    config = Wav2Vec2Config(
        **LAYER, conv_dim=[4, 4], conv_kernel=[10, 8], conv_stride=[8, 8], num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        num_codevectors_per_group=4, codevector_dim=4, proj_codevector_dim=4,
    )  # fmt: skip
    return Wav2Vec2ForPreTraining(config), Wav2Vec2FeatureExtractor(sampling_rate=8000, return_attention_mask=True)


def data2vec() -> tuple[Any, Any]:
    config = Data2VecAudioConfig(
        **LAYER, conv_dim=[4, 4], conv_kernel=[10, 8], conv_stride=[8, 8], num_conv_pos_embeddings=2,
        num_conv_pos_embedding_groups=2, conv_pos_kernel_size=3, mask_time_prob=0.5, mask_time_length=2,
    )  # fmt: skip
    return Data2VecAudioModel(config), Wav2Vec2FeatureExtractor(sampling_rate=8000)


def wav2vec2_bert() -> tuple[Any, Any]:
    config = Wav2Vec2BertConfig(**LAYER, feature_projection_input_dim=16, conv_depthwise_kernel_size=3)
    return Wav2Vec2BertModel(config), SeamlessM4TFeatureExtractor(feature_size=8, num_mel_bins=8, sampling_rate=8000)


def whisper() -> tuple[Any, Any]:
    config = WhisperConfig(
        vocab_size=40, num_mel_bins=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8, d_model=8, max_source_positions=50,
        pad_token_id=1, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1,
    )  # fmt: skip
    return WhisperModel(config), WhisperFeatureExtractor(feature_size=8, chunk_length=1)


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "clap": lambda: clap(fused=False),
    "fused clap": lambda: clap(fused=True),
    "ast": ast,
    "wav2vec2": wav2vec2,
    "data2vec": data2vec,
    "wav2vec2-bert": wav2vec2_bert,
    "whisper": whisper,
}
