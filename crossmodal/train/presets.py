"""What each data set is trained with, unless a flag or a file says otherwise."""

from typing import Any

_CRNN: dict[str, Any] = {"name": "crnn", "augment": {}}

PRESETS: dict[str, dict[str, Any]] = {
    "digits": {
        "epochs": 8,
        "learning_rate": 8e-3,
        "warm_up": 0.3,
        "spoiled": 0.1,
        "encoders": {"image": {"name": "cnn"}, "text": {"name": "lstm"}, "audio": {"name": "gru"}},
    },
    "avmnist": {"epochs": 3, "ema": 0.999, "encoders": {"image": {"name": "resnet"}, "audio": _CRNN}},
    "avmnist-speaker": {"epochs": 3, "ema": 0.999, "encoders": {"image": {"name": "resnet"}, "audio": _CRNN}},
    "avmnist-hard": {
        "epochs": 8,
        "ema": 0.999,
        "experts": "product",
        "encoders": {
            "image": {"name": "vit", "patch": 7},
            # Wider stripes hide the word itself, which is shorter than half a second.
            "audio": {"name": "crnn", "channels": 96, "hidden": 96, "augment": {"bands": 6, "frames": 8}},
        },
    },
    "avfind": {
        "epochs": 8,
        "fusion": "cross",
        "batch_size": 64,
        "num_heads": 2,
        "ema": 0.99,
        "sets": False,
        "encoders": {
            "image": {"name": "resnet", "stem": 4, "widths": [16, 48], "normalize": "image"},
            "audio": _CRNN,
            "text": {"name": "gru"},
        },
    },
}
PRESETS["digit-strings"] = {
    "epochs": 8,
    "fusion": "transcriber",
    "modality_dropout": 0.15,
    "encoders": {
        "image": {"name": "resnet", "stem": 2, "widths": [16, 32]},
        # 20 ms a token: spelling needs more tokens than letters.
        "audio": {"name": "crnn", "augment": {}, "log_mel": {"window": 200, "hop": 80}},
    },
}
PRESETS["avfind-text"] = PRESETS["avfind"]
