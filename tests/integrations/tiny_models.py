"""Tiny random models of transformers, with inputs in which something is padded: nothing is downloaded."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers as hf

BATCH, LENGTH, IMAGE = 3, 6, 8
WIDTH, HEADS = 16, 2
TEXT = {
    "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "vocab_size": 40, "max_position_embeddings": 64,
}  # fmt: skip
VISION = {
    "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "image_size": IMAGE, "patch_size": 4,
}  # fmt: skip
BART = {
    "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 40,
    "max_position_embeddings": 64, "dropout": 0.0, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 39,
    "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip


class Tiny(NamedTuple):
    build: Callable[[str], Any]  # attn_implementation -> model
    inputs: Callable[[], dict[str, Any]]
    output: Callable[[Any], torch.Tensor]  # of what forward returns: what does not lie on padding
    generate: Callable[[], dict[str, Any]] | None = None


def ids(length=LENGTH, low=3, high=39):
    return torch.randint(low, high, (BATCH, length))


def right_padding(length=LENGTH):
    return (torch.arange(length) < torch.tensor([[length], [length - 2], [length - 3]])).long()


def left_padding(length=LENGTH):
    return right_padding(length).flip(1)


def pixels(channels=3, size=IMAGE):
    return torch.randn(BATCH, channels, size, size)


def text_and_image():
    return {"input_ids": ids(), "attention_mask": right_padding(), "pixel_values": pixels()}


def visible(tensor, mask):
    return tensor * mask.to(tensor.dtype).reshape(*mask.shape, *[1] * (tensor.dim() - mask.dim()))


def clip(attention):
    config = hf.CLIPConfig(text_config={**TEXT, "eos_token_id": 39}, vision_config=VISION, projection_dim=8)
    return hf.CLIPModel._from_config(config, attn_implementation=attention)


def clip_inputs():
    inputs = text_and_image()
    inputs["input_ids"][:, 2] = 39
    return inputs


def siglip(attention):
    vision = {**VISION, "attention_dropout": 0.0}
    return hf.SiglipModel._from_config(
        hf.SiglipConfig(text_config=TEXT, vision_config=vision), attn_implementation=attention
    )


def whisper(attention):
    config = hf.WhisperConfig(
        **{**BART, "max_position_embeddings": 64}, num_mel_bins=4, max_source_positions=10, max_target_positions=64,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return hf.WhisperForConditionalGeneration._from_config(config, attn_implementation=attention)


def qformer(attention):
    config = hf.Blip2QFormerConfig(
        **{k: v for k, v in TEXT.items() if k != "max_position_embeddings"}, encoder_hidden_size=12,
        cross_attention_frequency=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return hf.Blip2QFormerModel._from_config(config, attn_implementation=attention)


def qformer_inputs():
    return {
        "query_embeds": torch.randn(BATCH, 4, WIDTH),
        "encoder_hidden_states": torch.randn(BATCH, LENGTH, 12),
        "encoder_attention_mask": right_padding(),
    }


def bridgetower(attention):
    config = hf.BridgeTowerConfig(
        hidden_size=64, num_attention_heads=HEADS, num_hidden_layers=2, intermediate_size=24, vocab_size=40,
        text_config={**TEXT, "hidden_size": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
                     "pad_token_id": 1},
        vision_config={"hidden_size": 64, "num_hidden_layers": 2, "image_size": IMAGE, "patch_size": 4},
    )  # fmt: skip
    model = hf.BridgeTowerModel._from_config(config, attn_implementation=attention)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def idefics(attention):
    config = hf.IdeficsConfig(
        **{k: v for k, v in TEXT.items() if k != "num_attention_heads"}, num_attention_heads=HEADS, dropout=0.0,
        additional_vocab_size=0, cross_layer_interval=1, alpha_initializer="ones",
        vision_config={"embed_dim": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS, "image_size": IMAGE,
                       "patch_size": 4, "intermediate_size": 24},
        perceiver_config={"use_resampler": False}, use_resampler=False, pad_token_id=1, bos_token_id=0, eos_token_id=39,
    )  # fmt: skip
    return hf.IdeficsForVisionText2Text._from_config(config, attn_implementation=attention)


def idefics_inputs():
    return {
        "input_ids": ids(),
        "attention_mask": left_padding(),
        "pixel_values": torch.randn(BATCH, 2, 3, IMAGE, IMAGE),
        "image_attention_mask": torch.tensor([[1, 0], [1, 1], [0, 1]])[:, None].expand(-1, LENGTH, -1).contiguous(),
    }


def mllama(attention):
    text = {
        **TEXT, "num_key_value_heads": 1, "cross_attention_layers": [1], "num_hidden_layers": 3, "vocab_size": 48,
        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 39, "dropout": 0.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }  # fmt: skip
    vision = {
        "hidden_size": WIDTH, "attention_heads": HEADS, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_global_layers": 1, "image_size": IMAGE, "patch_size": 4, "max_num_tiles": 2,
        "vision_output_dim": 2 * WIDTH, "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }  # fmt: skip
    config = hf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=40)
    model = hf.MllamaForConditionalGeneration._from_config(config, attn_implementation=attention)
    for name, parameter in model.named_parameters():
        if "gate" in name:
            torch.nn.init.ones_(parameter)
    return model


def mllama_inputs():
    cross = torch.ones(BATCH, LENGTH, 1, 2, dtype=torch.long)
    cross[1, :, :, 1] = 0
    return {
        "input_ids": ids(),
        "attention_mask": left_padding(),
        "pixel_values": torch.randn(BATCH, 1, 2, 3, IMAGE, IMAGE),
        "aspect_ratio_ids": torch.tensor([[2], [1], [3]]),
        "aspect_ratio_mask": torch.tensor([[[1, 1]], [[1, 0]], [[1, 1]]]),
        "cross_attention_mask": cross,
    }


def llava(attention):
    text = hf.LlamaConfig(**TEXT, num_key_value_heads=1, pad_token_id=1, bos_token_id=0, eos_token_id=39)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION), text_config=text, image_token_index=38, image_seq_length=4,
        vision_feature_layer=-1,
    )  # fmt: skip
    return hf.LlavaForConditionalGeneration._from_config(config, attn_implementation=attention)


def llava_inputs():
    tokens = torch.cat([ids(2, high=37), torch.full((BATCH, 4), 38), ids(3, high=37)], dim=1)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "pixel_values": pixels()}


def bart(attention):
    return hf.BartForConditionalGeneration._from_config(hf.BartConfig(**BART), attn_implementation=attention)


def t5(attention):
    config = hf.T5Config(
        d_model=WIDTH, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=HEADS, vocab_size=40,
        dropout_rate=0.0, pad_token_id=1, eos_token_id=39, decoder_start_token_id=2,
    )  # fmt: skip
    return hf.T5ForConditionalGeneration._from_config(config, attn_implementation=attention)


def vision_encoder_decoder(attention):
    vision = hf.ViTConfig(**VISION, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    text = hf.GPT2Config(
        n_embd=WIDTH, n_layer=2, n_head=HEADS, vocab_size=40, n_positions=64, add_cross_attention=True, is_decoder=True,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=39,
    )  # fmt: skip
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        vision, text, decoder_start_token_id=2, pad_token_id=1
    )
    return hf.VisionEncoderDecoderModel._from_config(config, attn_implementation=attention)


def clap_text(attention):
    config = hf.ClapTextConfig(
        **TEXT, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, projection_dim=8, pad_token_id=1
    )
    return hf.ClapTextModelWithProjection._from_config(config, attn_implementation=attention)


def sequence_to_sequence():
    return {"input_ids": ids(), "attention_mask": right_padding(), "decoder_input_ids": ids(4)}


MODELS = {
    "CLIP": Tiny(clip, clip_inputs, lambda o: torch.cat([o.text_embeds, o.image_embeds])),
    "SigLIP": Tiny(
        siglip,
        lambda: {"input_ids": ids(), "attention_mask": right_padding(), "pixel_values": pixels()},
        lambda o: torch.cat([o.text_embeds, o.image_embeds]),
    ),
    "Whisper": Tiny(
        whisper,
        lambda: {"input_features": torch.randn(BATCH, 4, 20), "decoder_input_ids": ids(4)},
        lambda o: o.logits,
        lambda: {"input_features": torch.randn(BATCH, 4, 20)},
    ),
    "BLIP-2 Q-Former": Tiny(qformer, qformer_inputs, lambda o: o.last_hidden_state),
    "BridgeTower": Tiny(bridgetower, text_and_image, lambda o: torch.cat([o.pooler_output, o.image_features[:, 0]], 1)),
    "Idefics": Tiny(idefics, idefics_inputs, lambda o: visible(o.logits, left_padding()), idefics_inputs),
    "Mllama": Tiny(mllama, mllama_inputs, lambda o: visible(o.logits, left_padding()), mllama_inputs),
    "LLaVA": Tiny(llava, llava_inputs, lambda o: o.logits, llava_inputs),
    "BART": Tiny(
        bart, sequence_to_sequence, lambda o: o.logits, lambda: {"input_ids": ids(), "attention_mask": right_padding()}
    ),
    "T5": Tiny(
        t5, sequence_to_sequence, lambda o: o.logits, lambda: {"input_ids": ids(), "attention_mask": right_padding()}
    ),
    "VisionEncoderDecoder": Tiny(
        vision_encoder_decoder,
        lambda: {"pixel_values": pixels(), "decoder_input_ids": ids(4)},
        lambda o: o.logits,
        lambda: {"pixel_values": pixels()},
    ),
    "CLAP text": Tiny(
        clap_text, lambda: {"input_ids": ids(), "attention_mask": right_padding()}, lambda o: o.text_embeds
    ),
}  # fmt: skip


def vilt():
    config = hf.ViltConfig(**{**TEXT, "type_vocab_size": 2}, image_size=IMAGE, patch_size=4)
    return hf.ViltModel(config)


def vilt_inputs():
    return {**text_and_image(), "pixel_mask": torch.ones(BATCH, IMAGE, IMAGE, dtype=torch.long)}


def blip_vision():
    return hf.BlipVisionModel(hf.BlipVisionConfig(**VISION))


def blip_text(is_decoder=True):
    config = hf.BlipTextConfig(
        **TEXT, encoder_hidden_size=12, is_decoder=is_decoder, hidden_dropout_prob=0.0, pad_token_id=1, bos_token_id=0,
        eos_token_id=39, sep_token_id=39,
    )  # fmt: skip
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    return BlipTextModel(config)


def blip_text_inputs():
    return {
        "input_ids": ids(),
        "attention_mask": right_padding(),
        "encoder_hidden_states": torch.randn(BATCH, 5, 12),
        "is_decoder": True,
    }


def blip():
    text = {**TEXT, "encoder_hidden_size": WIDTH, "is_decoder": True, "hidden_dropout_prob": 0.0}
    tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 39, "sep_token_id": 39}
    config = hf.BlipConfig(text_config={**text, **tokens}, vision_config=VISION, projection_dim=8)
    return hf.BlipForConditionalGeneration(config)


def clap_audio():
    config = hf.ClapAudioConfig(
        window_size=4, num_mel_bins=8, spec_size=32, patch_size=4, patch_stride=[4, 4], hidden_size=2 * WIDTH,
        patch_embeds_hidden_size=WIDTH, depths=[2, 1], num_attention_heads=[2, 4], num_hidden_layers=2,
        hidden_dropout_prob=0.0,
    )  # fmt: skip
    return hf.ClapAudioModel(config)


def lxmert():
    config = hf.LxmertConfig(
        vocab_size=40, hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=24, max_position_embeddings=64,
        l_layers=1, x_layers=1, r_layers=1, visual_feat_dim=10, visual_pos_dim=4,
    )  # fmt: skip
    return hf.LxmertModel(config)


def lxmert_inputs():
    return {
        "input_ids": ids(),
        "attention_mask": right_padding(),
        "visual_feats": torch.randn(BATCH, 5, 10),
        "visual_pos": torch.rand(BATCH, 5, 4),
        "visual_attention_mask": right_padding(5),
    }


def flava_text():
    return hf.FlavaTextModel(hf.FlavaTextConfig(**TEXT))


def visual_bert():
    return hf.VisualBertModel(hf.VisualBertConfig(**TEXT, visual_embedding_dim=10))


def visual_bert_inputs():
    return {
        "input_ids": ids(),
        "attention_mask": right_padding(),
        "visual_embeds": torch.randn(BATCH, 5, 10),
        "visual_attention_mask": right_padding(5),
        "visual_token_type_ids": torch.ones(BATCH, 5, dtype=torch.long),
    }


def perceiver():
    config = hf.PerceiverConfig(
        num_latents=4, d_latents=WIDTH, d_model=12, num_blocks=1, num_self_attends_per_block=2,
        num_self_attention_heads=HEADS, num_cross_attention_heads=1, qk_channels=8, v_channels=WIDTH,
    )  # fmt: skip
    return hf.PerceiverModel(config)


def perceiver_inputs():
    return {"inputs": torch.randn(BATCH, LENGTH, 12), "attention_mask": right_padding()}


# Models with layers that never ask for an implementation: (build, inputs, layers that an adapter reaches).
UNROUTED = {
    "ViltModel": (vilt, vilt_inputs, 2),
    "BlipVisionModel": (blip_vision, lambda: {"pixel_values": pixels()}, 2),
    "LxmertModel": (lxmert, lxmert_inputs, 5),
    "FlavaTextModel": (flava_text, lambda: {"input_ids": ids(), "attention_mask": right_padding()}, 2),
    "VisualBertModel": (visual_bert, visual_bert_inputs, 2),
    "PerceiverModel": (perceiver, perceiver_inputs, 3),
    "BlipTextModel": (blip_text, blip_text_inputs, 4),
    "ClapAudioModel": (clap_audio, lambda: {"input_features": torch.randn(BATCH, 1, 100, 8)}, 3),
}


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def sharpened(model):
    """Weights large enough that attention is far from uniform, and a mistake in it seen."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model
