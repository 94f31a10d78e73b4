"""What each data set is trained with, unless a flag or a file says otherwise."""

from typing import Any

_CRNN: dict[str, Any] = {"name": "crnn", "augment": {}}

_CLEAN: dict[str, Any] = {
    "epochs": 2,
    "samples": 25_600,
    "ema": 0.99,
    "encoders": {
        "image": {"name": "resnet", "widths": [16, 32, 64]},
        "audio": {**_CRNN, "voices": {"tract": 0.1, "tempo": 0.1}},
    },
}

PRESETS: dict[str, dict[str, Any]] = {
    "digits": {
        "epochs": 8,
        "learning_rate": 8e-3,
        "warm_up": 0.3,
        "spoiled": 0.1,
        "encoders": {"image": {"name": "cnn"}, "text": {"name": "lstm"}, "audio": {"name": "gru"}},
    },
    "avmnist": _CLEAN,
    "avmnist-speaker": {
        "epochs": 4,
        "ema": 0.995,
        "experts": "product",
        "encoders": {"image": {"name": "resnet", "widths": [16, 32, 64]}, "audio": _CRNN},
    },
    "avmnist-hard": {
        "epochs": 6,
        "ema": 0.999,
        "experts": "product",
        "encoders": {
            "image": {"name": "vit", "patch": 7},
            # Wider stripes hide the word itself, which is shorter than half a second.
            "audio": {"name": "crnn", "channels": 96, "hidden": 96, "augment": {"bands": 6, "frames": 8}},
        },
    },
    "avfind": {
        "epochs": 5,
        "fusion": "cross",
        "batch_size": 64,
        "num_heads": 2,
        "likeness": 4.0,
        "ema": 0.99,
        "sets": False,
        "encoders": {
            "image": {"name": "resnet", "stem": 4, "widths": [16, 32, 64], "normalize": "image"},
            "audio": {"name": "crnn", "augment": {}, "summary": True},
            "text": {"name": "gru", "summary": True},
        },
    },
}
PRESETS["digit-strings"] = {
    "epochs": 5,
    "samples": 12_800,
    "batch_size": 64,
    "learning_rate": 3e-3,
    "ema": 0.99,
    "fusion": "transcriber",
    "modality_dropout": 0.15,
    # Which digit of the image is meant is told by the time.
    "positions": {"audio": 1.0},
    "encoders": {
        "image": {"name": "vit", "patch": 14},
        # 20 ms a token: spelling needs more tokens than letters.
        "audio": {"name": "crnn", "hidden": 64, "augment": {}, "log_mel": {"window": 200, "hop": 80}},
    },
}
PRESETS["avfind-text"] = PRESETS["avfind"]
