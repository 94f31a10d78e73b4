"""Models of transformers at their real sizes, with random weights: ``python -m benchmarks.models --json FILE``.

Eager attention, "sdpa" and "crossmodal" of the same weights and inputs, and the last once more with its linear layers
converted; forward and greedy generation. One thread.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

import crossmodal
from benchmarks.paired import machine, paired_times, summary

WAYS = ("eager", "sdpa", "crossmodal", "crossmodal, linear layers too")


def clip() -> tuple[Any, dict[str, Any], dict[str, Any] | None]:
    """ViT-B/32 and its text encoder: 8 images, 8 captions of which most are padded."""
    mask = (torch.arange(77) < torch.randint(8, 78, (8, 1))).long()
    ids = torch.randint(0, 49_000, (8, 77))
    ids[:, 7] = 49_407
    return hf.CLIPModel, {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(8, 3, 224, 224)}, None


def bart() -> tuple[Any, dict[str, Any], dict[str, Any] | None]:
    """BART base: 4 documents of up to 256 tokens, 32 tokens of summary."""
    mask = (torch.arange(256) < torch.randint(100, 257, (4, 1))).long()
    inputs = {"input_ids": torch.randint(3, 50_000, (4, 256)), "attention_mask": mask}
    return hf.BartForConditionalGeneration, {**inputs, "decoder_input_ids": torch.randint(3, 50_000, (4, 32))}, inputs


def whisper() -> tuple[Any, dict[str, Any], dict[str, Any] | None]:
    """Whisper tiny: 30 seconds of sound."""
    inputs = {"input_features": torch.randn(1, 80, 3000)}
    model = hf.WhisperForConditionalGeneration
    return model, {**inputs, "decoder_input_ids": torch.randint(3, 50_000, (1, 32))}, inputs


def captioner() -> tuple[Any, dict[str, Any], dict[str, Any] | None]:
    """ViT-B/16 and GPT-2 small: 4 images, 32 tokens about each."""
    inputs = {"pixel_values": torch.randn(4, 3, 224, 224)}
    return hf.VisionEncoderDecoderModel, {**inputs, "decoder_input_ids": torch.randint(3, 50_000, (4, 32))}, inputs


def captioner_config() -> Any:
    decoder = hf.GPT2Config(is_decoder=True, add_cross_attention=True)
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(hf.ViTConfig(), decoder)
    config.decoder_start_token_id = config.pad_token_id = decoder.eos_token_id
    return config


CONFIGS: dict[str, tuple[Callable[[], tuple[Any, dict[str, Any], dict[str, Any] | None]], Callable[[], Any]]] = {
    "CLIP ViT-B/32": (clip, lambda: hf.CLIPConfig(text_config={}, vision_config={})),
    "BART base": (
        bart,
        lambda: hf.BartConfig(
            d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12, decoder_attention_heads=12,
            encoder_ffn_dim=3072, decoder_ffn_dim=3072, forced_eos_token_id=None,
        ),
    ),
    "Whisper tiny": (whisper, lambda: hf.WhisperConfig(suppress_tokens=None, begin_suppress_tokens=None)),
    "ViT + GPT-2": (captioner, captioner_config),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="models of transformers, by three implementations of attention")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hf.logging.set_verbosity_error()
    crossmodal.integrations.transformers.register()
    rows = []
    for name, (make, config) in CONFIGS.items():
        cls, inputs, for_generation = make()
        models = {way: cls._from_config(config(), attn_implementation=way.partition(",")[0]).eval() for way in WAYS}
        for model in models.values():
            model.load_state_dict(models["eager"].state_dict())
        crossmodal.convert(models[WAYS[-1]], linear=True)
        kinds = {"forward": inputs} if for_generation is None else {"forward": inputs, "generate": for_generation}
        for kind, given in kinds.items():
            options = {"do_sample": False, "min_new_tokens": 32, "max_new_tokens": 32} if kind == "generate" else {}

            def run(model: Any, kind: str = kind, given: Any = given, options: Any = options) -> Callable[[], Any]:
                @torch.no_grad()
                def call() -> None:
                    (model.generate if kind == "generate" else model)(**given, **options)

                return call

            ways = {way: run(model) for way, model in models.items()}
            found = summary(paired_times(ways, arguments.rounds), "crossmodal")
            rows.append({"model": name, "kind": kind, **found})
            print(f"{name:14} {kind:9} {found['milliseconds']} {found['times as long']}", flush=True)
    result = {"machine": machine(), "transformers": hf.__version__, "rows": rows}
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
